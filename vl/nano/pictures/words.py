"""Printed words: short lines of text in many faces, sizes and colours."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
from numpy.random import Generator
from PIL import Image

from vl.nano.pictures.canvas import Background, Boxes, SizeRange, draw_size, pick
from vl.nano.pictures.fonts import ALL, Fonts, find_faces
from vl.nano.pictures.pen import Pen, Type, smallest_size
from vl.nano.pictures.placing import fit_lines

MAX_WORDS = 4
_MIN_SIZE, _MAX_SIZE = 14, 220  # px per em
_MAX_SPACING = 1.3  # distance of two baselines in font heights
_REFERENCE_SIZE = 64  # px per em at which letters are measured; widths grow in proportion
_ASPECT = 5.0
# Letters whose two cases look alike, and l, i, o, 0, 1 that look like one another, cannot be read off a random string.
_UPPER, _LOWER, _DIGITS = "ABDEFGHJKLMNPQRTY", "abdefghjkmnpqrty", "0123456789"


@dataclass(frozen=True)
class WordsFacts:
    """Ground truth of a printed text: its lines, the face's name and the size in pixels per em.

    `boxes`: every character but the spaces, in reading order, with the room that it takes in its line.
    """

    width: int
    height: int
    lines: tuple[str, ...]
    face: str
    size: int
    boxes: Boxes

    @property
    def text(self) -> str:
        """The lines joined by spaces."""
        return " ".join(self.lines)


@lru_cache(maxsize=1)
def word_list() -> tuple[str, ...]:
    """The words that are printed: about four thousand lower-case English words, sorted."""
    return tuple(resources.files("vl.nano.pictures").joinpath("words.txt").read_text("utf-8").split())


@lru_cache(maxsize=1)
def phrases() -> dict[str, tuple[str, ...]]:
    """The lists of `phrases.toml` by name: words and phrases that pictures print."""
    text = resources.files("vl.nano.pictures").joinpath("phrases.toml").read_text("utf-8")
    return {name: tuple(texts) for name, texts in tomllib.loads(text).items()}


def draw_words(
    rng: Generator,
    sizes: Sequence[SizeRange],
    *,
    max_words: int = MAX_WORDS,
    fonts: Fonts = ALL,
    textures: float = 0.0,
    size: int | None = None,
) -> tuple[Image.Image, WordsFacts]:
    """Draws a line or two of text on a backdrop.

    The type is as large as the canvas allows, or smaller by up to a factor, or `size` px per em; words that cannot be
    printed at the least legible size, or at this one, are left out, and the canvas grows around a single one.
    """
    face = pick(rng, find_faces(fonts))
    width, height = draw_size(sizes, _ASPECT, rng)
    smallest = size or smallest_size(_MIN_SIZE, width, height)
    words, sample = draw_text(rng, int(rng.integers(1, max_words + 1))), Type(face, _REFERENCE_SIZE)

    def largest(lines: Sequence[str]) -> float:
        wide, high = sample.widest(lines) / sample.size, sample.height / sample.size  # ems
        return min((width - 4) / wide, (height - 4) / (high * (1 + _MAX_SPACING * (len(lines) - 1))))

    lines, fit = fit_lines(rng, words, smallest, np.array_split, largest)
    kind = Type(face, size or round(smallest * (min(fit, _MAX_SIZE) / smallest) ** rng.uniform(0.3, 1.0)))
    pitch = kind.height * float(rng.uniform(1.0, _MAX_SPACING))
    wide, high = round(kind.widest(lines)), round(kind.height + pitch * (len(lines) - 1))
    margin = 2 + kind.size // 12  # the last letter of an italic leans out of its advance
    width, height = max(width, wide + 2 * margin), max(height, high + 2 * margin)
    background = Background.draw(rng, textures)
    pen, ink = Pen(background.paint(width, height, rng)), background.draw_ink(rng)
    left = margin + rng.uniform() * (width - wide - 2 * margin)
    baseline = margin + rng.uniform() * (height - high - 2 * margin) + kind.ascent
    align = float(rng.choice((0.0, 0.5)))
    for number, line in enumerate(lines):
        pen.print(line, kind, ink, left + align * (wide - kind.width(line)), baseline + number * pitch)
    facts = WordsFacts(width, height, lines, face.name, kind.size, tuple(pen.boxes))
    return pen.image, facts


def draw_text(rng: Generator, count: int) -> list[str]:
    """Draws `count` words in one style: plain, capitalised, upper case, with digits, or random letters."""
    vocabulary = word_list()
    style = rng.random()
    words = [vocabulary[int(i)] for i in rng.integers(len(vocabulary), size=count)]
    if style < 0.35:
        return words
    if style < 0.5:
        return [word.capitalize() for word in words]
    if style < 0.62:
        return [word.upper() for word in words]
    if style < 0.72:
        words[-1] += str(rng.choice((".", ",", "!", "?", ":")))
        return [words[0].capitalize(), *words[1:]]
    if style < 0.84:
        return [_number(rng) if rng.random() < 0.6 else word for word in words]
    alphabet = _UPPER if rng.random() < 0.4 else _LOWER
    return [_letters(rng, alphabet, int(rng.integers(3, 8))) for _ in words]


def caption_text(facts: WordsFacts) -> str:
    """The canonical caption, such as 'The text reads "hello world".'."""
    return f'The text reads "{facts.text}".'


def _number(rng: Generator) -> str:
    kind = rng.random()
    digits = _letters(rng, _DIGITS, int(rng.integers(1, 6)))
    if kind < 0.6:
        return digits
    if kind < 0.75:
        return f"{digits}.{int(rng.integers(100)):02d}"
    if kind < 0.85:
        return f"${digits}"
    return f"{int(rng.integers(101))}%" if kind < 0.93 else clock(rng)


def clock(rng: Generator) -> str:
    """A time such as "9:05"."""
    return f"{int(rng.integers(24))}:{int(rng.integers(60)):02d}"


def _letters(rng: Generator, alphabet: str, count: int) -> str:
    return "".join(alphabet[int(i)] for i in rng.integers(len(alphabet), size=count))
