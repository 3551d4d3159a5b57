"""What is asked: prompts with columns of a table in them, and several about one image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import vl
from vl.errors import InputError
from vl.jobs import JobError, Prompts, caption_images, expand_sources

from .containers import write_table
from .fakes import FakeModel, read, run

FORMATS = ["csv", "jsonl", "parquet"]


def found(out: Path) -> list[dict[str, Any]]:
    """The rows as DuckDB reads them."""
    return duckdb.sql(f"FROM '{out}{'/*.parquet' if out.suffix == '.parquet' else ''}'").to_arrow_table().to_pylist()


@pytest.fixture
def table(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Two images, the first with two questions, and a row that has none."""
    for name, width in (("a", 1), ("b", 2)):
        Image.new("RGB", (width, 5)).save(tmp_path / f"{name}.png")
    rows = [("a.png", "x", 1), ("a.png", "y", 2), ("b.png", "x", 3), ("b.png", None, 4)]
    path = tmp_path / f"table.{getattr(request, 'param', 'csv')}"
    write_table(path, [{"path": name, "kind": kind, "number": number} for name, kind, number in rows])
    return path


@pytest.mark.parametrize("out", ["out.jsonl", "out.parquet"])
@pytest.mark.parametrize("table", FORMATS, indirect=True)
def test_columns_in_a_prompt(table: Path, tmp_path: Path, out: str) -> None:
    def job() -> Any:
        return caption_images(FakeModel(), [table], tmp_path / out, prompt="{number}. {kind} {{kind}}:", batch_size=2)

    assert (job().images, job().skipped) == (4, 4), "two questions about one image are two rows"
    rows = found(tmp_path / out)
    said = {(Path(row["image"]).name, row["prompt"], row["caption"] or row["error"]) for row in rows}
    asked = {
        ("a.png", "1. x {kind}:", "1 by 5"),
        ("a.png", "2. y {kind}:", "1 by 5"),
        ("b.png", "3. x {kind}:", "2 by 5"),
    }
    lost = f"{tmp_path / 'b.png'}: its row has nothing in 'kind', which the prompt names"
    assert said == {(name, prompt, f"{prompt} {size}") for name, prompt, size in asked} | {("b.png", None, lost)}


def test_columns_of_an_imagefolder(tmp_path: Path) -> None:
    Image.new("RGB", (4, 5)).save(tmp_path / "a.png")
    write_table(tmp_path / "metadata.jsonl", [{"file_name": "a.png", "tags": ["red", "é"]}])
    caption_images(FakeModel(), [tmp_path], tmp_path / "out.jsonl", prompt="{tags}:")
    (row,) = read(tmp_path / "out.jsonl")
    assert row["caption"] == '["red", "é"]: 4 by 5'
    assert row["settings"]["template"] == "{tags}:"


def test_columns_that_are_not_there_are_refused(table: Path, archive: Path, tmp_path: Path) -> None:
    for sources, prompt, message in (
        ([table], "{colour}:", r"no column 'colour', which the prompt names.*\{\{colour\}\}.*'path', 'kind', 'number'"),
        ([archive], "{kind}:", r"03\.png is in no table that has the column 'kind'"),
    ):
        with pytest.raises(InputError, match=message):
            caption_images(FakeModel(), sources, tmp_path / "out.jsonl", prompt=prompt)
        assert read(tmp_path / "out.jsonl") == []


def test_a_damaged_row_keeps_its_cause(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"path": "x.png", "kind": "x"}\n{"path"\n')
    caption_images(FakeModel(), [tmp_path / "t.jsonl"], tmp_path / "out.jsonl", prompt="{kind}")
    errors = [row["error"] for row in read(tmp_path / "out.jsonl")]
    assert "no such file" in errors[0]
    assert "is not JSON" in errors[1]


def test_another_template_is_another_run(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    caption_images(FakeModel(), [table], out, prompt="{kind}:")
    with pytest.raises(JobError, match=r"prompt '\{kind\}:', not '\{number\}:'"):
        caption_images(FakeModel(), [table], out, prompt="{number}:")
    with pytest.raises(JobError, match=r"prompt '\{kind\}:', not 'x:'"):
        caption_images(FakeModel(), [table], out, prompt="x:", mix=True)
    assert caption_images(FakeModel(), [table], out, prompt="{number}:", mix=True).images == 4


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_a_column_of_answers_for_each_prompt(archive: Path, tmp_path: Path, name: str) -> None:
    out, model = tmp_path / name, FakeModel()
    prompts = {"short": "Short:", "colour": "Colour:", "caption": "Long:"}
    tally = run(archive, out, model, prompt=prompts)
    assert (tally.captions, tally.errors) == (12, 1)
    assert model.most <= 4, "the batch"
    rows = found(out)
    assert len(rows) == 13
    for row in rows:
        if row["image"].endswith("broken.jpg"):
            assert "broken.jpg" in row["error"]
            continue
        size = "{} by {}".format(*Image.open(row["image"]).size)
        assert [row[column] for column in prompts] == [f"{text} {size}" for text in prompts.values()]
        assert (row["prompt_tokens"], row["image_tokens"], row["completion_tokens"]) == (21, 3, 3)
        assert row["seconds"] == 1.5
        assert row["prompt"] == prompts or json.loads(row["prompt"]) == prompts
    assert run(archive, out, prompt=prompts).skipped == 13
    with pytest.raises(JobError, match="prompt"):
        run(archive, out, prompt=prompts | {"caption": "Longer:"})
    with pytest.raises(JobError, match="prompt"):
        run(archive, out, mix=True)


def test_an_answer_that_fails_costs_the_row_and_is_retried_as_a_whole(archive: Path, tmp_path: Path) -> None:
    model = FakeModel()
    asked = 0

    def trouble(size: str) -> None:
        nonlocal asked
        asked += size == "6 by 5"
        if size == "6 by 5" and asked == 2:
            raise InputError("no room")

    model.trouble = trouble
    prompts = {"a": "A:", "b": "B:", "c": "C:"}
    run(archive, tmp_path / "out.jsonl", model, prompt=prompts)
    (row,) = [row for row in read(tmp_path / "out.jsonl") if row["image"].endswith("06.png")]
    assert (row["error"], asked) == ("no room", 2)
    assert not prompts.keys() & row.keys()
    assert run(archive, tmp_path / "out.jsonl", prompt=prompts, retry_errors=True).captions == 1


def test_an_image_of_several_prompts_is_encoded_once(images: Path, tmp_path: Path) -> None:
    """The engine's own counts say so, and the answers are those of each prompt by itself."""
    model = vl.load("nano", max_batch_size=2)
    prompts = {"first": "Describe this image.", "second": "What colours are there?", "third": "How many shapes?"}
    caption_images(model, [images], tmp_path / "out.jsonl", prompt=prompts, batch_size=2, max_new_tokens=4)
    rows = read(tmp_path / "out.jsonl")
    engine: Any = model.engine
    hits, misses = engine.image_counts
    assert (len(rows), hits, misses) == (3, 0, 3), "the later prompts go on from where the image was read"
    assert engine.counts.hits == 2 * len(rows)
    alone = vl.load("nano", prefix_memory=0, image_memory=0)
    for row in rows:
        for column, prompt in prompts.items():
            assert row[column] == alone.caption(row["image"], prompt, max_new_tokens=4).strip()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name, colour in (("red", (255, 0, 0)), ("green", (0, 200, 0)), ("grey", (90, 90, 90))):
        Image.new("RGB", (300, 200), colour).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("prompt", ["", " \n", {"short": "", "long": "Describe it."}])
def test_an_empty_prompt_asks_nothing(prompt: Any) -> None:
    with pytest.raises(vl.InputError, match=r"the prompt of column '(caption|short)' is empty: say what to ask"):
        Prompts.of(prompt)


@given(st.text(alphabet='{}":,a1 \n').filter(str.strip))
def test_braces_that_name_no_column_are_text(text: str) -> None:
    prompts = Prompts.of(text)
    if not prompts.fields and "{{a" not in text:
        assert prompts.told() == text
    if prompts.fields:
        assert prompts.fill({field: f"<{field}>" for field in prompts.fields})[0] != text


@pytest.mark.parametrize(
    ("text", "fields", "asked"),
    [
        ('{"colour": "red", "n": {"a": 1}}', (), '{"colour": "red", "n": {"a": 1}}'),
        ("{{kind}} {}", (), "{kind} {}"),
        ("{kind} {alt text} {kind}", ("kind", "alt text"), "K A K"),
    ],
)
def test_what_braces_stand_for(text: str, fields: tuple[str, ...], asked: str) -> None:
    prompts = Prompts.of(text)
    assert prompts.fields == fields
    assert prompts.fill({"kind": "K", "alt text": "A"}) == (asked,)


def test_prompts_of_a_command_line() -> None:
    assert Prompts.parse(["What?"]).told() == "What?"
    assert Prompts.parse(["What?", "short=Say it", "Where = here?"]).told() == {
        "caption": "What?",
        "short": "Say it",
        "caption_2": "Where = here?",
    }
    for texts, message in ((["a=x", "a=y"], "two prompts"), (["error=x"], "already"), ([], "prompt must be")):
        with pytest.raises(InputError, match=message):
            Prompts.parse(texts)
    for prompt in ({}, {"A": "x"}, {"a": 1}, 7):
        with pytest.raises(InputError):
            Prompts.of(prompt)  # type: ignore[arg-type]


def test_sources_without_columns_are_as_before(table: Path) -> None:
    assert [Path(str(source)).name for source in expand_sources([table])] == ["a.png", "a.png", "b.png", "b.png"]
