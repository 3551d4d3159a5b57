"""The pictures of `demo/examples/`, each with the caption that the embedded model should give it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from vl.training.pictures.canvas import SizeRange
from vl.training.pictures.scenes import SceneFacts
from vl.training.pictures.words import WordsFacts
from vl.training.render import EVALUATION_SEED, Mix, Sample, render

CAPTIONS = "captions.json"
_SEED = EVALUATION_SEED + 2


@dataclass(frozen=True)
class Example:
    """A file to write: the first picture of the stream that fits the description, after `skip` others.

    `things` counts objects of a scene or words of a text, `side` the pixels of the longer side, `landscape` says
    whether that is the width. Examples show what the embedded model can do, so ones that it misreads are skipped; how
    often it does is what `vl eval` says.
    """

    name: str
    kind: str
    side: int
    things: int
    landscape: bool = True
    skip: int = 0


EXAMPLES = (
    Example("tiny-scene-64px.png", "scenes", 64, 1),
    Example("small-scene-240px.webp", "scenes", 240, 3),
    Example("scene-336px.jpg", "scenes", 336, 4, landscape=False),
    Example("large-scene-1280px.jpg", "scenes", 1280, 5),
    Example("huge-scene-2016px.webp", "scenes", 2016, 6, landscape=False),
    Example("word-128px.png", "words", 128, 1),
    Example("words-320px.png", "words", 320, 2, skip=1),
    Example("sign-800px.jpg", "words", 800, 3, skip=1),
    Example("poster-1600px.webp", "words", 1600, 4),
)


def write_examples(folder: str | Path) -> dict[str, str]:
    """Writes every example and `captions.json`, which maps file name to caption. Returns that map."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    captions = {}
    for number, example in enumerate(EXAMPLES):
        sample = find(example, number << 16)
        sample.image.save(folder / example.name, quality=82)
        captions[example.name] = sample.answer
    (folder / CAPTIONS).write_text(json.dumps(captions, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return captions


def find(example: Example, start: int) -> Sample:
    """The sample from index `start` on that an example describes."""
    mix = Mix(sizes=(SizeRange(example.side, example.side, 1.0),)).only(example.kind)
    fitting = (sample for index in count(start) if _fits(sample := render(_SEED, index, mix), example))
    return next(islice(fitting, example.skip, None))


def _fits(sample: Sample, example: Example) -> bool:
    facts = sample.facts
    if isinstance(facts, WordsFacts):
        things = len(facts.text.split())
        plain = facts.size >= example.side / 16 and facts.text.replace(" ", "").isalpha()
    else:
        assert isinstance(facts, SceneFacts)
        things, plain = len(facts.shapes), True
    width, height = sample.image.size
    return plain and things == example.things and (width >= height) == example.landscape
