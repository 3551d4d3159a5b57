"""Tables of words and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image

from vl.nano.pictures.canvas import RGB, Boxes, SizeRange, Tones, draw_size, hsv, pick, readable
from vl.nano.pictures.fonts import ALL, Face, Fonts, find_faces
from vl.nano.pictures.labels import MIN_SIZE, draw_names, draw_title, draw_words_apart, write_number
from vl.nano.pictures.pen import Pen, Type, smallest_size

_MAX_SIZE = 64
_REFERENCE_SIZE = 64  # px per em at which letters are measured
_ASPECT = 2.2
_MAX_COLUMNS, _MAX_ROWS = 6, 8


@dataclass(frozen=True)
class TableFacts:
    """Ground truth of a table: its title ("" for none), header and rows as printed.

    `values` holds each column's numbers, top to bottom, or None for a column of words; the first column names the
    rows and is one of words, even where the names are years. `boxes`: every character but the spaces, with the room
    that it takes in its line, in pixels.
    """

    width: int
    height: int
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    values: tuple[tuple[float, ...] | None, ...]
    boxes: Boxes


def draw_table(rng: Generator, sizes: Sequence[SizeRange], *, fonts: Fonts = ALL) -> tuple[Image.Image, TableFacts]:
    """Draws a table of 2 to 6 columns and 2 to 8 rows below its header.

    Contents are drawn anew, and smaller, until they fit the canvas in legible type. Where not even a small table
    does, the canvas grows around it: below about 160 px it is larger than `sizes` say. Type has whole px per em, which
    may take up to a twenty-fifth more room than there is.
    """
    face = pick(rng, find_faces(fonts))
    width, height = draw_size(sizes, _ASPECT, rng)
    smallest = smallest_size(MIN_SIZE, width, height)
    for attempt in range(8):
        ease = 1 - attempt / 7
        columns = int(rng.integers(2, 3 + round((_MAX_COLUMNS - 2) * ease)))
        rows = int(rng.integers(2, 3 + round((_MAX_ROWS - 2) * ease)))
        grid = _Grid.draw(rng, face, columns, rows, smallest, fonts.part)
        largest = min(_MAX_SIZE, width / grid.width, height / grid.height)
        if largest >= smallest:
            break
    kind = Type(face, round(smallest * max(1.0, largest / smallest) ** rng.uniform(0.2, 1.0)))
    width, height = max(width, round(grid.width * kind.size) + 1), max(height, round(grid.height * kind.size) + 1)
    tones = Tones.draw(rng)
    pen = Pen(Image.new("RGB", (width, height), tones.paper))
    grid.paint(pen, rng, kind, tones)
    facts = TableFacts(width, height, grid.title, grid.header, grid.rows, grid.values, tuple(pen.boxes))
    return pen.image, facts


@dataclass(frozen=True)
class _Grid:
    """A table's contents and form: `widths` of columns, `pitch` of rows and `margin` around are in ems."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    values: tuple[tuple[float, ...] | None, ...]
    widths: tuple[float, ...]
    pitch: float
    pad: float
    margin: float

    @classmethod
    def draw(cls, rng: Generator, face: Face, columns: int, rows: int, size: int, part: str) -> _Grid:
        """Draws one of which even type of `size` px per em, wider in proportion, keeps to its columns."""
        kind, names = draw_names(rng, rows, ordered=0.3, part=part)
        words = [word.capitalize() for word in draw_words_apart(rng, columns, part=part)]
        header = (kind.capitalize() or words[0], *words[1:])
        drawn = [(names, None), *(_draw_column(rng, rows, part) for _ in range(columns - 1))]
        cells, values = zip(*drawn, strict=True)
        title = draw_title(rng, kind, part) if rng.random() < 0.35 else ""
        pad, samples = float(rng.uniform(0.3, 0.9)), (Type(face, _REFERENCE_SIZE), Type(face, size))
        widths = [
            max(sample.widest((name, *column)) / sample.size for sample in samples) + 2 * pad
            for name, column in zip(header, cells, strict=True)
        ]
        widths[0] += max(0.0, samples[0].width(title) / samples[0].size + 2 * pad - sum(widths))
        pitch, margin = float(rng.uniform(1.45, 2.2)), float(rng.uniform(0.3, 0.8))
        return cls(title, header, tuple(zip(*cells, strict=True)), values, tuple(widths), pitch, pad, margin)

    @property
    def lines(self) -> int:
        return len(self.rows) + 1 + bool(self.title)

    @property
    def width(self) -> float:
        return sum(self.widths) + 2 * self.margin

    @property
    def height(self) -> float:
        return self.pitch * self.lines + 2 * self.margin

    def paint(self, pen: Pen, rng: Generator, kind: Type, tones: Tones) -> None:
        """Draws the table somewhere on the picture, often spread out over it."""
        size, margin, (width, height) = kind.size, self.margin * kind.size, pen.image.size
        spread_x, spread_y = rng.uniform(0, 1, size=2) * (rng.random(2) < 0.6)
        widths = np.array(self.widths) * size + spread_x * (width - self.width * size) / len(self.widths)
        pitch = self.pitch * size
        pitch += spread_y * min((height - self.height * size) / self.lines, pitch)
        left = margin + rng.uniform() * (width - widths.sum() - 2 * margin)
        top = margin + rng.uniform() * (height - pitch * self.lines - 2 * margin)
        edges = left + np.concatenate(((0.0,), np.cumsum(widths)))
        if self.title:
            align = float(rng.choice((0.0, 0.5)))
            pen.write(self.title, kind, tones.ink, left + align * widths.sum(), top + pitch / 2, align)
            top += pitch
        header_ink = _rule(pen, rng, size, tones, edges, top + pitch * np.arange(len(self.rows) + 2))
        aligns = [float(rng.choice((1.0, 1.0, 0.5, 0.0) if numbers else (0.0, 0.0, 0.5))) for numbers in self.values]
        for line, cells in enumerate((self.header, *self.rows)):
            for column, text in enumerate(cells):
                low, high = edges[column] + self.pad * size, edges[column + 1] - self.pad * size
                x, y = float(low + aligns[column] * (high - low)), float(top + (line + 0.5) * pitch)
                pen.write(text, kind, tones.ink if line else header_ink, x, y, aligns[column])


def _rule(pen: Pen, rng: Generator, size: int, tones: Tones, edges: np.ndarray, lines: np.ndarray) -> RGB:
    """Draws fills and rules in one of the styles; returns the ink for the header."""
    style = str(rng.choice(("ruled", "rows", "striped", "striped and ruled", "plain", "boxed")))
    thick = max(1, round(size * float(rng.uniform(0.05, 0.12))))
    xs, ys = edges.round().astype(int).tolist(), lines.round().astype(int).tolist()
    ink = tones.ink
    if rng.random() < 0.5:
        fill = hsv(rng.uniform(0, 360), rng.uniform(0.1, 0.9), rng.uniform(0.2, 0.95))
        pen.draw.rectangle((xs[0], ys[0], xs[-1], ys[1]), fill=fill)
        ink = readable(fill)
    if "striped" in style:
        for row in range(2, len(ys) - 1, 2):
            pen.draw.rectangle((xs[0], ys[row], xs[-1], ys[row + 1]), fill=tones.shade)
    across = ys if style in ("ruled", "rows", "striped and ruled") else ys[1:2] if style != "boxed" else ()
    for y in across if style != "plain" or rng.random() < 0.7 else ():
        pen.draw.line((xs[0], y, xs[-1], y), fill=tones.rule, width=thick)
    for x in xs if style in ("ruled", "striped and ruled") else ():
        pen.draw.line((x, ys[0], x, ys[-1]), fill=tones.rule, width=thick)
    if style == "boxed":
        pen.draw.rectangle((xs[0], ys[0], xs[-1], ys[-1]), outline=tones.rule, width=thick)
        pen.draw.line((xs[1], ys[0], xs[1], ys[-1]), fill=tones.rule, width=thick)
    return ink


def _draw_column(rng: Generator, rows: int, part: str) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    """A column's cells as printed, and their numbers unless they are words."""
    if rng.random() < 0.25:
        kind = str(rng.choice(("word", "word", "first", "last")))
        words = draw_words_apart(rng, rows, part=part, kind=kind)
        return tuple(words if kind == "word" else map(str.capitalize, words)), None
    unit = str(rng.choice(("", "", "", "%", "$")))
    top = 100.0 if unit == "%" else float(rng.choice((10, 50, 100, 100, 1000, 10000)))
    decimals = int(rng.choice((0, 0, 1, 2))) if top <= 100 else 0
    grouped = bool(rng.random() < 0.5)
    numbers = tuple(round(float(rng.uniform(0.02, 1.0)) * top, decimals) for _ in range(rows))
    return tuple(write_number(number, decimals, unit, grouped=grouped) for number in numbers), numbers
