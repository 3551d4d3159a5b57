"""Sheets of print: rows of text on a backdrop, in inks that stand out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from vl.nano.pictures.canvas import RGB, Background, Box, hsv
from vl.nano.pictures.fonts import Face
from vl.nano.pictures.pen import Pen, Type
from vl.nano.pictures.placing import place_block
from vl.nano.pictures.prose import Prose

MIN_SIZE = 14  # px per em: the smallest type
_MIN_RATIO = 4.5  # of brightness: equally bright hues are hard to read, however far apart
_USUAL_LINE, _USUAL_LETTER = 1.2, 0.7  # ems: a line's height, a letter's mean width
_LETTERS = "".join(map(chr, range(ord("!"), ord("~") + 1)))


class Entry(NamedTuple):
    """A part of a picture that can be asked for: its role, what it is called and what it says.

    Roles: "item", "sum" and "total" of a receipt, whose values are amounts; "title", "button", "setting" and "message"
    of a window.
    """

    role: str
    label: str
    value: str


def wideness(face: Face) -> float:
    """How many times as wide as usual a face's letters are; 1 at least."""
    mean = Type(face, MIN_SIZE).width(_LETTERS) / (len(_LETTERS) * MIN_SIZE)
    return max(1.0, mean / _USUAL_LETTER)


class Sheet(Pen):
    """A picture of print in the making: `lines` are the rows printed so far, `prose` draws what to print."""

    def __init__(self, rng: Generator, width: int, height: int, part: str = "all") -> None:
        self.rng, self.prose = rng, Prose(rng, part)
        self.backdrop = Background.draw(rng)
        super().__init__(self.backdrop.paint(width, height, rng))
        self.width, self.height = width, height
        self.lines: list[str] = []

    def print_row(self, kind: Type, ink: RGB, top: float, *cells: tuple[float, str]) -> None:
        """Prints a row of (left edge, text), from left to right."""
        for left, text in cells:
            self.print(text, kind, ink, left, top + kind.ascent)
        self.lines.append(" ".join(text for _, text in cells))

    def print_pair(
        self, kind: Type, ink: RGB, top: float, ends: tuple[float, float], label: str, value: str = ""
    ) -> None:
        """Prints a label at the left end and its value at the right one; without a value, in the middle."""
        left, right = ends
        cells = [(left, label), (right - kind.width(value), value)]
        self.print_row(kind, ink, top, *(cells if value else [((left + right - kind.width(label)) / 2, label)]))

    def draw_type(self, face: Face, across: int, down: int, largest: int) -> Type:
        """The face at a size of which `across` ems fit the width and `down` ems the height, and `largest` at most.

        Faces with tall lines have more ems fit the height, those with wide letters more the width.
        """
        tall = max(1.0, Type(face, MIN_SIZE).height / (_USUAL_LINE * MIN_SIZE))
        high = max(
            MIN_SIZE, min(largest, int(self.width / (wideness(face) * across)), int(self.height / (tall * down)))
        )
        return Type(face, round(MIN_SIZE * (high / MIN_SIZE) ** self.rng.random()))

    def draw_ink(self, *behind: RGB) -> RGB:
        """A colour that stands out from all of those behind it: random, or else the better of black and white."""

        def least(colour: RGB) -> float:
            return min(_ratio(colour, other) for other in behind)

        tries = 4 * (self.rng.random() < 0.6)
        drawn = (hsv(360 * self.rng.random(), self.rng.random(), self.rng.random()) for _ in range(tries))
        return next((c for c in drawn if least(c) >= _MIN_RATIO), max(((0, 0, 0), (255, 255, 255)), key=least))

    def place(self, wide: float, high: float, pad: float = 0.0) -> tuple[float, float]:
        """The left and top edge of a block anywhere on the sheet, `pad` px from its edges."""
        return place_block(self.rng, (self.width, self.height), wide, high, pad)

    def paper(self, box: Box, *, dark: bool = False) -> RGB:
        """Lays a plain sheet there, light or dark; returns its colour."""
        shade = (0.0, 0.25) if dark else (0.85, 1.0)
        colour = hsv(self.rng.uniform(0, 360), self.rng.uniform(0, 0.15), self.rng.uniform(*shade))
        self.panel(box, colour)
        return colour


def _ratio(a: RGB, b: RGB) -> float:
    """How much brighter the one colour is than the other: 1 to 21 (the contrast ratio of WCAG 2)."""
    dark, light = sorted(float(np.dot((0.2126, 0.7152, 0.0722), (np.array(c) / 255) ** 2.2)) for c in (a, b))
    return (light + 0.05) / (dark + 0.05)
