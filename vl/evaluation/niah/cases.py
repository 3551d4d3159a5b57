"""What is asked of a model: prompts by length and depth, made when their turn comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

import torch

from preprocessing import Inputs, Processor
from vl.errors import InputError
from vl.evaluation.niah.haystack import Hay, drawn_hay
from vl.evaluation.niah.pages import LINES, SIDE, draw_page, set_lines
from vl.evaluation.niah.prompts import Frame, hide
from vl.evaluation.niah.scoring import value_score
from vl.evaluation.niah.text import INTRODUCTION, Needle, draw_needles

_PAGES = "Read the pages and answer the question:"


@dataclass(frozen=True)
class Case:
    """One prompt: `prepare` makes it, `score` judges an answer by `reference`, from 0 to 1.

    `length` in tokens and `depth` in percent say which cell of the grid it counts for.
    """

    id: str
    length: int
    depth: float
    question: str
    reference: str
    prepare: Callable[[Processor], Inputs] = field(repr=False)
    score: Callable[[str, str], float] = field(repr=False)


@dataclass(frozen=True)
class Failed:
    """A record that makes no prompt, and why."""

    id: str
    error: str


@dataclass(frozen=True)
class Grid:
    """What is drawn: `count` prompts for each length (in tokens, template and question included) and depth (percent).

    Attributes:
        distractors: needles of other keys beside the one that is asked for, at depths of their own.
        pages: in print, on as many pages as the tokens of a length allow, instead of as text of exactly that length.
        seed: other seeds make other prompts; a prompt depends on its cell, its number and this alone.
    """

    lengths: Sequence[int]
    depths: Sequence[float]
    count: int = 4
    distractors: int = 0
    pages: bool = False
    hay: Hay = drawn_hay
    seed: int = 0

    def cases(self) -> Iterator[Case]:
        """The prompts, the shortest first."""
        kind, prepare = ("pages", _print) if self.pages else ("text", _write)
        for length in sorted(self.lengths):
            for depth in self.depths:
                for number in range(self.count):
                    id = f"{kind}-{length}-{depth:g}-{number}"
                    rng = Random(f"{self.seed} {id}")
                    asked, *others = draw_needles(rng, 1 + self.distractors)
                    hidden = [(asked, depth / 100), *((other, rng.random()) for other in others)]
                    made = partial(prepare, length, asked, hidden, self.hay, rng.getrandbits(64))
                    yield Case(id, length, depth, asked.question, asked.value, made, value_score)


def nearest(depths: Sequence[float], depth: float) -> float:
    """The one of `depths` that is nearest to a depth."""
    return min(depths, key=lambda given: abs(given - depth))


Hidden = Sequence[tuple[Needle, float]]


def _write(length: int, asked: Needle, hidden: Hidden, hay: Hay, seed: int, processor: Processor) -> Inputs:
    """A prompt of text: exactly `length` tokens."""
    frame = Frame.of(processor, INTRODUCTION, f"\n\n{asked.question}")
    needles = [(f" {needle.sentence}", depth) for needle, depth in hidden]
    no_tiles = torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    return Inputs(hide(processor, frame, hay(Random(seed)), needles, length), no_tiles, [])


def _print(length: int, asked: Needle, hidden: Hidden, hay: Hay, seed: int, processor: Processor) -> Inputs:
    """A prompt of page images: at most `length` tokens."""
    if processor.patcher is None:
        raise InputError("this checkpoint is text-only and sees no pages")
    text = {"type": "text", "text": f"{_PAGES} {asked.question}"}
    around, page = len(processor([{"role": "user", "content": [text]}])), processor.patcher.grid(SIDE, SIDE).tokens
    pages = (length - around) // page
    if pages < 1:
        raise InputError(f"{length:,} tokens are too few: a page and the question take {around + page:,}")
    lines = set_lines(hay(Random(seed)), pages * LINES)
    for needle, depth in reversed(hidden):  # in place of a line of hay, the one that is asked for last
        lines[round(depth * (len(lines) - 1))] = needle.sentence
    images = [draw_page(lines[start : start + LINES]) for start in range(0, len(lines), LINES)]
    content = [*({"type": "image", "image": image} for image in images), text]
    return processor([{"role": "user", "content": content}])
