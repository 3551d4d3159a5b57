"""The user's own files: every form that is read, and every way in which a record can be bad."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vl
from vl.evaluation import Example, Row, count_records, read_records


def ask(text: str = "Read it.", image: str | None = "a.png") -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": image}] if image else []
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def write(folder: Path, *records: Any) -> Path:
    """A file with a line for each record; bytes are written as they are."""
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    path = folder / "data.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def read(folder: Path, *records: Any, metric: str | None = None) -> list[Example | Row]:
    return list(read_records(write(folder, *records), metric))


def example(folder: Path, record: Any, metric: str | None = None) -> Example:
    (found,) = read(folder, record, metric=metric)
    assert isinstance(found, Example), found
    return found


def test_a_record(tmp_path: Path) -> None:
    found = example(tmp_path, {"id": "x7", "task": "ocr", "answer": "STOP", "messages": ask()})
    assert (found.id, found.task, found.metric, found.line) == ("x7", "ocr", "ocr", 1)
    assert (found.prompt, found.references) == ("Read it.", ("STOP",))
    assert found.pictures() == [str(tmp_path / "a.png")], "paths count from the file's folder"
    assert found.messages[0]["content"][0]["image"] == str(tmp_path / "a.png")


def test_images_elsewhere(tmp_path: Path) -> None:
    parts = [
        {"type": "image", "image": "/abs/a.png"},
        {"type": "image_url", "image_url": {"url": "https://example.org/b.png"}},
        {"type": "image_url", "image_url": "data:image/png;base64,AA=="},
    ]
    record = {"task": "vqa", "answer": "x", "messages": [{"role": "user", "content": parts}]}
    assert example(tmp_path, record).pictures() == [
        "/abs/a.png",
        "https://example.org/b.png",
        "data:image/png;base64,AA==",
    ]


def test_where_answers_come_from(tmp_path: Path) -> None:
    said = [*ask(), {"role": "assistant", "content": "as trained"}]
    found = example(tmp_path, {"task": "caption", "messages": said})
    assert found.references == ("as trained",)
    assert [message["role"] for message in found.messages] == ["user"], "the answer is not shown to the model"
    assert example(tmp_path, {"task": "ocr", "messages": said, "answer": "other"}).references == ("other",)
    assert example(tmp_path, {"task": "counting", "messages": ask(), "answer": 3}).references == ("3",)
    assert example(tmp_path, {"task": "vqa", "messages": ask(), "answers": ["a", 2.5]}).references == ("a", "2.5")
    assert example(tmp_path, {"task": "ocr", "messages": ask(), "answer": ""}).references == ("",)


def test_the_other_forms_of_training_records(tmp_path: Path) -> None:
    found = example(tmp_path, {"image": "b.png", "prompt": "How many?", "answer": 3, "task": "counting"})
    assert (found.prompt, found.references, found.pictures()) == ("How many?", ("3",), [str(tmp_path / "b.png")])
    assert example(tmp_path, {"image": "b.png", "caption": "a dog", "task": "caption"}).references == ("a dog",)
    found = example(tmp_path, [*ask(), {"role": "assistant", "content": "STOP"}], metric="ocr")
    assert (found.task, found.references) == ("ocr", ("STOP",))


def test_task_groups_and_metric_judges(tmp_path: Path) -> None:
    found = example(tmp_path, {"task": "my-split", "answer": "x", "messages": ask()}, metric="vqa")
    assert (found.task, found.metric) == ("my-split", "vqa")
    assert example(tmp_path, {"answer": "x", "messages": ask()}, metric="vqa").task == "vqa"
    with pytest.raises(vl.InputError, match="unknown metric 'bleu': choose from caption"):
        read(tmp_path, {}, metric="bleu")


BAD: dict[str, tuple[Any, str]] = {
    "json": (b'{"messages": ', "not JSON: .* at column"),
    "utf-8": (b'{"answer": "\xff"}', "not UTF-8 from byte 13"),
    "deep": (b"[" * 100_000, "not usable JSON|not JSON"),
    "long number": (b'{"answer": ' + b"1" * 5000 + b"}", "not usable JSON"),
    "no object": (b"7", "a record is an object"),
    "no messages": ({"task": "ocr"}, "messages"),
    "empty messages": ({"task": "ocr", "answer": "x", "messages": []}, "non-empty list"),
    "role": ({"task": "ocr", "answer": "x", "messages": [{"role": "bot", "content": ""}]}, "message 1: role"),
    "image": ({"task": "ocr", "answer": "x", "messages": ask(image=5)}, "path or a URL, not 5"),  # type: ignore[arg-type]
    "no answer": ({"task": "ocr", "messages": ask()}, 'no right answer: give "answer"'),
    "no answers": ({"task": "ocr", "messages": ask(), "answers": []}, "no right answer"),
    "odd answer": ({"task": "ocr", "messages": ask(), "answer": {"a": 1}}, 'not {"a": 1}'),
    "true": ({"task": "vqa", "messages": ask(), "answer": True}, "a string or a number, not true"),
    "both": ({"task": "vqa", "messages": ask(), "answer": "x", "answers": ["x"]}, "keep one"),
    "no task": ({"answer": "x", "messages": ask()}, 'no "task": name one of caption, .*--metric'),
    "unknown task": ({"task": "poems", "answer": "x", "messages": ask()}, "'poems'.*--metric"),
    "task": ({"task": 7, "answer": "x", "messages": ask()}, '"task" has to be a string'),
    "no question": ({"task": "ocr", "messages": [{"role": "assistant", "content": "x"}]}, "answers a message"),
    "system": ({"task": "ocr", "answer": "x", "messages": [{"role": "system", "content": "x"}]}, "the system's"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_costs_its_row(kind: str, tmp_path: Path) -> None:
    record, cause = BAD[kind]
    good = {"task": "ocr", "answer": "x", "messages": ask()}
    before, bad, after = read(tmp_path, good, record, good)
    assert isinstance(before, Example)
    assert isinstance(after, Example)
    assert isinstance(bad, Row)
    assert bad.line == 2
    assert bad.error is not None
    assert re.search(cause, bad.error)


def test_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    record = json.dumps({"task": "ocr", "answer": "x", "messages": ask()}).encode()
    found = read(tmp_path, b"\xef\xbb\xbf" + record, b"", b"  \r", record + b"\r")
    assert [item.line for item in found] == [1, 4]
    assert all(isinstance(item, Example) for item in found)
    assert count_records(tmp_path / "data.jsonl") == 2


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(vl.InputError, match="cannot read"):
            list(read_records(path))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["messages", "role", "content", "type", "answer", "image", "text"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=100)
@given(record=JSON)
def test_whatever_is_in_a_record_it_is_an_example_or_an_error(record: Any, tmp_path_factory: Any) -> None:
    (found,) = read(tmp_path_factory.mktemp("any"), record, metric="vqa")
    assert isinstance(found, Example) or (found.error and found.line == 1)
