"""Chats in MR-NIAH's layout: a few of our own making."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vl
from vl.evaluation.niah import Case, Failed, find_needles, read_rounds

LABEL = "1. Kiwi\n2. Blood Orange\n3. Fig"
DEPTHS = (0, 25, 50, 75, 100)


def chat(*fillers: int, needle: int, label: str = LABEL) -> dict[str, Any]:
    """Rounds whose answers have so many characters, and the needle before the one of that number."""
    turns = [("Say something", "x" * size) for size in fillers]
    turns.insert(needle, ("Name some fruits", label))
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    messages.append({"role": "user", "content": "Please repeat the fruits you named"})
    return {"messages": messages, "label": label, "length_class": 2048}


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def test_records_are_read_with_their_depth(tmp_path: Path) -> None:
    file = write(
        tmp_path / "two.jsonl",
        chat(100, 3000, 2900, 3000, needle=1),
        "",
        chat(3000, 3000, 20, needle=2),
        chat(needle=0),
        chat(3000, 3000, 3000, 3000, needle=1),
        chat(3000, 3000, 3000, 3000, needle=2),
    )
    cases = list(read_rounds(file, DEPTHS))
    assert all(isinstance(case, Case) for case in cases)
    assert [(case.id, case.length, case.depth) for case in cases if isinstance(case, Case)] == [
        ("two.jsonl:1", 2048, 0),
        ("two.jsonl:3", 2048, 100),
        ("two.jsonl:4", 2048, 100),  # right before the question
        ("two.jsonl:5", 2048, 25),
        ("two.jsonl:6", 2048, 50),
    ]
    first = cases[0]
    assert isinstance(first, Case)
    assert (first.question, first.reference) == ("Please repeat the fruits you named", LABEL)
    assert first.score(LABEL, "Kiwi and Fig") == pytest.approx(2 / 3)


@pytest.mark.parametrize(("others", "before"), [(3, (0, 0, 0)), (8, (2, 3, 4)), (40, (10, 19, 28))])
def test_published_chats_have_the_depths_that_they_were_made_with(
    tmp_path: Path, others: int, before: tuple[int, int, int]
) -> None:
    """As in the published files of 2048 and 10240 tokens: the needle and two more like it, in any order."""
    records = []
    for needle in range(3):
        fillers = [1] * before[0] + [5000] * (others - before[0])  # long rounds after it, as at 2048 tokens
        record = chat(*fillers, needle=before[needle])
        like_it = [turn for text in ("1. Plum", "1. Pear") for turn in chat(needle=0, label=text)["messages"][:2]]
        for place, turns in zip([k for k in range(3) if k != needle], (like_it[:2], like_it[2:]), strict=True):
            at = 2 * (before[place] + place)
            record["messages"][at:at] = turns
        records.append(record)
    file = write(tmp_path / "published.jsonl", *records, "oops")
    *cases, failed = read_rounds(file)
    assert [case.depth for case in cases if isinstance(case, Case)] == [25, 50, 75]
    assert isinstance(failed, Failed)
    assert [case.depth for case in read_rounds(file, (0, 100)) if isinstance(case, Case)] == [0, 0, 100]
    (alone,) = read_rounds(write(tmp_path / "one.jsonl", records[2]))
    assert isinstance(alone, Case)
    assert alone.depth == (25 if others < 40 else 50), "of one chat nobody knows: its depth is measured"


def test_what_is_wrong_with_a_record_is_its_own(tmp_path: Path) -> None:
    good = chat(10, needle=0)
    bad = (
        ("oops", "not JSON"),
        ([good], "a chat is an object, not a list: expected {"),
        ("7", 'expected {"messages": [...], "label": "...", "length_class": 2048}, got int'),
        ({**good, "label": None}, '"label" is None'),
        ({**good, "label": ".\n,"}, '"label" is '),
        ({**good, "length_class": "2k"}, '"length_class" is'),
        ({**good, "label": "1. Plum"}, "no answer of the assistant has the label"),
        ({**good, "messages": []}, "message"),
        ({"label": LABEL, "length_class": 2048}, 'no "messages"'),
        ({**good, "messages": good["messages"][:-1]}, "the last turn has to be the user's question"),
    )
    file = write(tmp_path / "bad.jsonl", good, *(record for record, _ in bad))
    first, *failed = read_rounds(file, DEPTHS)
    assert isinstance(first, Case)
    for number, (case, (_, message)) in enumerate(zip(failed, bad, strict=True), 2):
        assert isinstance(case, Failed)
        assert case.id == f"bad.jsonl:{number}"
        assert message in case.error
    with pytest.raises(vl.InputError, match="cannot read"):
        list(read_rounds(tmp_path / "none.jsonl", DEPTHS))


def test_images_of_a_chat_are_those_beside_its_file(tmp_path: Path) -> None:
    """In no published file, but in messages as they are everywhere."""
    record = chat(needle=0)
    record["messages"][0]["content"] = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Name fruits"}]
    (case,) = read_rounds(write(tmp_path / "chat.jsonl", record))
    assert isinstance(case, Case)
    asked: Any = []
    case.prepare(asked.append)
    assert asked[0].images == [str(tmp_path / "a.png")]


def test_a_model_that_repeats_scores_all_and_one_that_apologises_nothing(
    tmp_path: Path, reader: Callable[[Callable[[str], str]], Any]
) -> None:
    file = write(tmp_path / "chats.jsonl", chat(20, 400, needle=1), chat(400, 20, needle=1), "oops")
    copying = reader(lambda text: text[text.index("1. Kiwi") :].partition("user name")[0])
    cases = list(read_rounds(file, (0, 100)))
    result = find_needles(copying, cases, (0, 100))
    assert result.cells() == [[1.0], [1.0]]
    assert [row.error is None for row in result.rows] == [True, True, False]
    assert result.summary()["count"] == 2
    sorry = find_needles(reader(lambda _: "Sorry: Kiwi, Blood Orange, Fig"), cases, (0, 100))
    assert sorry.score() == 0
