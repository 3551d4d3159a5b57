"""Printed words: short lines of text in many faces, sizes and colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image

from vl.nano.pictures.canvas import Background, Boxes, SizeRange, draw_size, pick
from vl.nano.pictures.fonts import ALL, Fonts, find_faces
from vl.nano.pictures.pen import Pen, Type, smallest_size
from vl.nano.pictures.placing import fit_lines
from vl.nano.pictures.prose import Prose

MAX_WORDS = 4
_MIN_SIZE, _MAX_SIZE = 14, 220  # px per em
_MAX_SPACING = 1.3  # distance of two baselines in font heights
_REFERENCE_SIZE = 64  # px per em at which letters are measured; widths grow in proportion
_ASPECT = 5.0


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
    words = Prose(rng, fonts.part).line(int(rng.integers(1, max_words + 1)))
    sample = Type(face, _REFERENCE_SIZE)

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


def caption_text(facts: WordsFacts) -> str:
    """The canonical caption, such as 'The text reads "hello world".'."""
    return f'The text reads "{facts.text}".'
