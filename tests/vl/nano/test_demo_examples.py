"""The shipped examples and what draws them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vl.evaluation.metrics import METRICS, named_shapes, read_text
from vl.model import DEFAULT_PROMPT
from vl.nano.demo_examples import EXAMPLES, RECORDS, DemoPicture, write_examples
from vl.nano.pictures.cutouts import thing_list
from vl.nano.pictures.emoji_faces import find_emoji_faces

from .pictures.cutout_folder import make_cutouts

SHIPPED = Path(__file__).parents[3] / "demo" / "examples"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_is_what_its_description_says(
    example: DemoPicture, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if example.kind == "emoji" and not any(face.colour for face in find_emoji_faces()):
        pytest.skip("needs Noto Color Emoji, as drawing these examples does")
    cutouts = make_cutouts(tmp_path_factory.mktemp("cutouts")) if example.kind == "things" else None
    (record,) = write_examples(tmp_path, [example], cutouts=cutouts)
    assert [json.loads(line) for line in (tmp_path / RECORDS).read_text("utf-8").splitlines()] == [record]
    with Image.open(tmp_path / example.name) as image:
        image.load()
        assert max(image.size) == example.side
        assert (image.width >= image.height) == example.landscape
    answer = record["answer"]
    assert record["task"] in METRICS
    assert record["task"] == example.asked if example.asked else record["prompt"] == DEFAULT_PROMPT
    if example.kind == "scenes" and not example.asked:
        assert len(named_shapes(answer)) == example.things
    if example.kind == "things":
        assert answer in [f"{thing.phrase[0].upper()}{thing.phrase[1:]}." for thing in thing_list()]
    if example.kind == "words":
        assert len(read_text(answer).split()) == example.things
    if example.kind == "pages" and not example.asked:
        assert len(read_text(answer).split()) >= (example.things or 1)
    if example.asked:
        assert 0 < len(answer) < 40


def test_what_a_model_says_is_beside_the_right_answer(tmp_path: Path) -> None:
    asked = []

    def say(path: Path, prompt: str) -> str:
        asked.append((path, prompt))
        return "A guess."

    (record,) = write_examples(tmp_path, EXAMPLES[:1], say)
    assert asked == [(tmp_path / record["image"], record["prompt"])]
    assert record["said"] == "A guess." != record["answer"]


def test_an_example_does_not_depend_on_the_others(tmp_path: Path) -> None:
    first = [example for example in EXAMPLES if example.kind == "scenes"][:2]
    assert write_examples(tmp_path / "a", first) == write_examples(tmp_path / "b", first[::-1])[::-1]


def test_each_shipped_picture_has_its_record() -> None:
    records = [json.loads(line) for line in (SHIPPED / RECORDS).read_text("utf-8").splitlines()]
    pictures = {path.name for path in SHIPPED.iterdir() if path.name != RECORDS}
    assert [record["image"] for record in records] == [example.name for example in EXAMPLES]
    assert {record["image"] for record in records} == pictures
    assert all(record["said"] for record in records)
    assert {path.suffix for path in SHIPPED.iterdir()} == {".png", ".jpg", ".webp", ".jsonl"}
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 1.5 * 2**20
