"""The pictures of `demo/examples/`, each with what the embedded model is asked about it, the right answer and its own.

    python -m vl.nano.demo_examples demo/examples --cutouts clipart

renews them, as other weights want. Nothing is picked by what the model answers: a picture is the first that fits its
description, of a stream that its name seeds. `clipart` is what `vl.nano.prepare_things` makes of the Open Clip Art
Library alone (`--clipart`), which is in the public domain.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any
from zlib import crc32

from vl.loading import load
from vl.model import DEFAULT_PROMPT
from vl.nano.kinds import Facts
from vl.nano.mix import Mix
from vl.nano.pictures.canvas import SizeRange
from vl.nano.pictures.emoji import EmojiFacts
from vl.nano.pictures.pages import PageFacts
from vl.nano.pictures.scenes import SceneFacts
from vl.nano.pictures.things import ThingFacts
from vl.nano.pictures.words import WordsFacts
from vl.nano.render import Sample, render
from vl.training.config import EVALUATION_SEED

RECORDS = "examples.jsonl"  # beside the pictures, in the form that `vl eval` reads
_SEED = EVALUATION_SEED + 2

Say = Callable[[Path, str], str]
"""A model's answer about a picture."""


@dataclass(frozen=True)
class DemoPicture:
    """A file to write: the first picture of the stream that fits the description.

    `things` counts the objects of a scene, emoji, everyday things, or words of a text (of a page: at least), `side` the
    pixels of the longer side, `landscape` says whether that is the width. `of` is the facts' own kind, as "receipt",
    where they have one. `asked` is the metric of the question about it; without, the picture is to be described.
    `mix` says what else is drawn otherwise.
    """

    name: str
    kind: str
    side: int
    things: int | None = None
    landscape: bool = True
    of: str | None = None
    asked: str | None = None
    mix: Mapping[str, Any] = field(default_factory=dict)


EXAMPLES = (
    DemoPicture("tiny-scene-64px.png", "scenes", 64, 1),
    DemoPicture("scene-336px.jpg", "scenes", 336, 4, landscape=False),
    DemoPicture("huge-scene-2016px.webp", "scenes", 2016, 6, landscape=False),
    DemoPicture("outlines-400px.png", "scenes", 400, 5, mix={"odd": 1.0}),
    DemoPicture("place-320px.png", "scenes", 320, 4, asked="vqa"),
    DemoPicture("count-480px.webp", "counts", 480, 9, asked="counting"),
    DemoPicture("emoji-240px.png", "emoji", 240, 1, asked="vqa"),
    DemoPicture("emoji-600px.webp", "emoji", 600, 3, landscape=False),
    DemoPicture("emoji-on-busy-ground-400px.webp", "emoji", 400, 2, mix={"grounds": 1.0}),
    DemoPicture("thing-300px.webp", "things", 300, 1),
    DemoPicture("words-320px.png", "words", 320, 2),
    DemoPicture("poster-1600px.webp", "words", 1600, 4),
    DemoPicture("page-900px.webp", "pages", 900, 30, of="page"),
    DemoPicture("screen-1008px.webp", "pages", 1008, of="screen"),
    DemoPicture("receipt-1100px.webp", "pages", 1100, landscape=False, of="receipt", asked="chart"),
    DemoPicture("bar-chart-600px.png", "charts", 600, of="bar chart", asked="chart"),
    DemoPicture("line-chart-800px.png", "charts", 800, of="line chart", asked="chart"),
    DemoPicture("pie-chart-400px.png", "charts", 400, of="pie chart"),
    DemoPicture("table-640px.png", "tables", 640, asked="table"),
    DemoPicture("nothing-336px.webp", "nothing", 336),
)


def write_examples(
    folder: str | Path,
    examples: Sequence[DemoPicture] = EXAMPLES,
    say: Say | None = None,
    cutouts: str | None = None,
) -> list[dict[str, str]]:
    """Writes every example and `examples.jsonl`, a line to each. Returns these records, with what a model `said`.

    Raises:
        ConfigError: if there is nothing to print with: text needs the fonts of the `train` extra, emoji a colour font,
            everyday things the folder `cutouts`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for example in examples:
        sample, path = find(example, cutouts), folder / example.name
        assert sample.image is not None
        sample.image.save(path, quality=82)
        record = {"id": path.stem, "image": path.name, "prompt": sample.prompt, "answer": sample.answer}
        said = {} if say is None else {"said": say(path, sample.prompt)}
        records.append(record | {"task": sample.metric} | said)
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (folder / RECORDS).write_text("".join(lines), "utf-8")
    return records


def find(example: DemoPicture, cutouts: str | None = None) -> Sample:
    """The sample that an example describes, with the default prompt where nothing is asked."""
    sizes = (SizeRange(example.side, example.side, 1.0),)
    mix = replace(Mix(faces="held-out", cutouts=cutouts).only(example.kind), sizes=sizes, **example.mix)
    mix = replace(mix, questions=1.0 if example.asked else 0.0)
    start = crc32(example.name.encode())  # so that a picture does not depend on what else there is
    sample = next(sample for index in count(start) if _fits(sample := render(_SEED, index, mix), example))
    return sample if example.asked else replace(sample, prompt=DEFAULT_PROMPT)


def _fits(sample: Sample, example: DemoPicture) -> bool:
    if sample.image is None:
        return False
    width, height = sample.image.size
    return (
        (width >= height) == example.landscape
        and max(width, height) == example.side
        and example.of in (None, getattr(sample.facts, "kind", None))
        and example.asked in (None, sample.metric)
        and _has_things(sample.facts, example)
    )


def _has_things(facts: Facts, example: DemoPicture) -> bool:
    if isinstance(facts, PageFacts):
        return len(facts.text.split()) >= (example.things or 1)
    if isinstance(facts, WordsFacts):
        return len(facts.text.split()) == example.things
    if isinstance(facts, SceneFacts):
        return len(facts.shapes) == example.things
    return not isinstance(facts, EmojiFacts | ThingFacts) or len(facts.items) == example.things


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the pictures and examples.jsonl go")
    parser.add_argument("--cutouts", required=True, help="a folder with pictures of everyday things")
    parser.add_argument("--model", default="nano", help="what answers: a folder or hub id, by default the embedded one")
    options = parser.parse_args()
    say = load(options.model, device="cpu").caption
    for record in write_examples(options.folder, say=say, cutouts=options.cutouts):
        print(f"{record['image']}: {record['said']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
