"""The pictures of `demo/examples/`, each with what the embedded model is asked about it, and the right answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from zlib import crc32

from vl.model import DEFAULT_PROMPT
from vl.nano.kinds import Facts
from vl.nano.mix import Mix
from vl.nano.pictures.canvas import SizeRange
from vl.nano.pictures.emoji import EmojiFacts
from vl.nano.pictures.pages import PageFacts
from vl.nano.pictures.scenes import SceneFacts
from vl.nano.pictures.words import WordsFacts
from vl.nano.render import Sample, render
from vl.training.config import EVALUATION_SEED

RECORDS = "examples.jsonl"  # beside the pictures, in the form that `vl eval` reads
_SEED = EVALUATION_SEED + 2


@dataclass(frozen=True)
class DemoPicture:
    """A file to write: the first picture of the stream that fits the description, after `skip` others.

    `things` counts the objects of a scene, emoji, or words of a text (of a page: at least), `side` the pixels of the
    longer side, `landscape` says whether that is the width. `of` is the facts' own kind, such as "receipt", where
    pictures have one. `asked` is a part of the question; without it the picture is to be described. Examples show what
    the embedded model can do, so ones that it misreads are skipped; how often it does is what `vl eval` says.
    """

    name: str
    kind: str
    side: int
    things: int | None = None
    landscape: bool = True
    of: str | None = None
    asked: str | None = None
    skip: int = 0


EXAMPLES = (
    DemoPicture("tiny-scene-64px.png", "scenes", 64, 1),
    DemoPicture("scene-336px.jpg", "scenes", 336, 4, landscape=False, skip=1),
    DemoPicture("huge-scene-2016px.webp", "scenes", 2016, 6, landscape=False),
    DemoPicture("place-320px.png", "scenes", 320, 4, asked="of the picture?"),
    DemoPicture("count-480px.webp", "counts", 480, 9, asked="How many"),
    DemoPicture("emoji-240px.png", "emoji", 240, 1, asked="Unicode name"),
    DemoPicture("emoji-600px.webp", "emoji", 600, 3, landscape=False),
    DemoPicture("words-320px.png", "words", 320, 2),
    DemoPicture("poster-1600px.webp", "words", 1600, 4),
    DemoPicture("page-1344px.webp", "pages", 1344, 30, of="page", skip=4),
    DemoPicture("receipt-1100px.webp", "pages", 1100, landscape=False, of="receipt", asked="total"),
    DemoPicture("bar-chart-600px.png", "charts", 600, of="bar chart", asked="value"),
    DemoPicture("pie-chart-336px.png", "charts", 336, of="pie chart", skip=7),
    DemoPicture("table-640px.png", "tables", 640, asked="What is", skip=1),
)


def write_examples(folder: str | Path, examples: Sequence[DemoPicture] = EXAMPLES) -> list[dict[str, str]]:
    """Writes every example and `examples.jsonl`, a line to each. Returns these records.

    Raises:
        ConfigError: if there is nothing to print with: text needs the fonts of the `train` extra, emoji a colour font.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for example in examples:
        sample = find(example)
        assert sample.image is not None
        sample.image.save(folder / example.name, quality=82)
        asked = {"image": example.name, "prompt": sample.prompt, "answer": sample.answer, "task": sample.metric}
        records.append({"id": Path(example.name).stem} | asked)
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (folder / RECORDS).write_text("".join(lines), "utf-8")
    return records


def find(example: DemoPicture) -> Sample:
    """The sample that an example describes, with the default prompt where nothing is asked."""
    sizes = (SizeRange(example.side, example.side, 1.0),)
    mix = replace(Mix().only(example.kind), sizes=sizes, questions=1.0 if example.asked else 0.0)
    start = crc32(example.name.encode())  # so that a picture does not depend on what else there is
    fitting = (sample for index in count(start) if _fits(sample := render(_SEED, index, mix), example))
    sample = next(islice(fitting, example.skip, None))
    return sample if example.asked else replace(sample, prompt=DEFAULT_PROMPT)


def _fits(sample: Sample, example: DemoPicture) -> bool:
    if sample.image is None:
        return False
    width, height = sample.image.size
    return (
        (width >= height) == example.landscape
        and max(width, height) == example.side
        and example.of in (None, getattr(sample.facts, "kind", None))
        and (example.asked or "") in sample.prompt
        and _has_things(sample.facts, example)
    )


def _has_things(facts: Facts, example: DemoPicture) -> bool:
    if isinstance(facts, PageFacts):
        return len(facts.text.split()) >= (example.things or 1)
    if isinstance(facts, WordsFacts):
        plain = facts.size >= example.side / 16 and facts.text.replace(" ", "").isalpha()
        return plain and len(facts.text.split()) == example.things
    if isinstance(facts, SceneFacts):
        return len(facts.shapes) == example.things
    return not isinstance(facts, EmojiFacts) or len(facts.items) == example.things
