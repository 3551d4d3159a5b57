"""Tables of words and numbers, and what charts share with them: the names, numbers, tones and lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vl.nano.pictures.canvas import COLOURS, RGB, Box, SizeRange, draw_size, hsv
from vl.nano.pictures.fonts import Face, Fonts, advance, find_faces, line_width, open_face
from vl.nano.pictures.words import word_list

MIN_SIZE = 12  # px per em of the smallest type
_MIN_SIZE_SHARE = 0.012  # of the longer side: the largest canvases are shrunk before they are seen
_MAX_SIZE = 64
_REFERENCE_SIZE = 64  # px per em at which letters are measured
_CAPITALS, _DESCENDERS = 0.75, 0.2  # how far letters reach above and below the baseline, in ems
_MIDDLE = 0.35  # from the baseline up to the middle of digits and capitals, in ems
_MIN_CONTRAST = 130.0  # of luminance, 0 to 255: blue on black is seen but hardly read
_ASPECT = 2.2
_MAX_COLUMNS, _MAX_ROWS = 6, 8
# fmt: off
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
           "November", "December")
# fmt: on
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


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
    boxes: tuple[tuple[str, Box], ...]


@dataclass(frozen=True)
class Tones:
    """Colours that go together: of the page, of print on it, of a shaded part of it and of rules."""

    paper: RGB
    ink: RGB
    shade: RGB
    rule: RGB

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Tones:
        dark = rng.random() < 0.25
        if dark:
            paper = hsv(rng.uniform(0, 360), rng.uniform(0, 0.6), rng.uniform(0.03, 0.24))
        elif rng.random() < 0.35:
            paper = (255, 255, 255)
        else:
            paper = hsv(rng.uniform(0, 360), rng.uniform(0, 0.14), rng.uniform(0.88, 1.0))
        best = (255, 255, 255) if dark else (0, 0, 0)
        drawn = hsv(rng.uniform(0, 360), rng.uniform(0, 1), rng.uniform(0.7, 1.0) if dark else rng.uniform(0, 0.5))
        ink = drawn if abs(_luminance(drawn) - _luminance(paper)) >= _MIN_CONTRAST else best
        return cls(paper, ink, blend(paper, ink, rng.uniform(0.03, 0.1)), blend(paper, ink, rng.uniform(0.18, 0.6)))


class Pen:
    """Prints lines of text on a picture; `boxes` collects where each character but the spaces comes to lie."""

    def __init__(self, image: Image.Image, face: Face) -> None:
        self.face = face
        self.draw = ImageDraw.Draw(image)
        self.boxes: list[tuple[str, Box]] = []

    def write(self, text: str, size: int, x: float, y: float, ink: RGB, align: float = 0.0) -> None:
        """Prints a line `size` px per em high whose capitals are centred on `y`.

        It begins at `x` for `align` 0, is centred on it for 0.5 and ends there for 1.
        """
        length = measure(self.face, size, text)
        left, baseline = x - align * length, y + _MIDDLE * size
        self.draw.text((left, baseline), text, fill=ink, font=open_face(self.face, size), anchor="ls")
        self.boxes += character_boxes(text, self.face, size, left, left + length, baseline)


def measure(face: Face, size: int, text: str) -> float:
    """The width of a line of text in pixels."""
    return line_width(open_face(face, size), text)


def character_boxes(
    text: str, face: Face, size: int, left: float, right: float, baseline: float
) -> list[tuple[str, Box]]:
    """Shares the room of a line among its characters by their advances; spaces are left out."""
    font = open_face(face, size)
    advances = np.array([advance(font, character) for character in text])
    edges = left + (right - left) * np.concatenate(((0.0,), np.cumsum(advances) / advances.sum()))
    upper, lower = baseline - _CAPITALS * size, baseline + _DESCENDERS * size
    return [(c, (float(edges[i]), upper, float(edges[i + 1]), lower)) for i, c in enumerate(text) if c != " "]


def blend(a: RGB, b: RGB, share: float) -> RGB:
    """`share` of the way from colour `a` to colour `b`."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def readable(colour: RGB) -> RGB:
    """Black or white, whichever can be read better on `colour`."""
    return (0, 0, 0) if _luminance(colour) > 130 else (255, 255, 255)


def _luminance(colour: RGB) -> float:
    """Brightness as the eye weighs it, 0 to 255."""
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue


def smallest_size(width: int, height: int) -> int:
    """The smallest legible type on a canvas, in pixels per em."""
    return max(MIN_SIZE, round(_MIN_SIZE_SHARE * max(width, height)))


def write_number(value: float, decimals: int, unit: str = "", *, grouped: bool = False) -> str:
    """A number as it is printed: "1,250", "$3.50", "12%". Units other than "$" and "%" are not printed with it."""
    text = f"{value:,.{decimals}f}" if grouped else f"{value:.{decimals}f}"
    return f"${text}" if unit == "$" else f"{text}%" if unit == "%" else text


# Colours would name things of other colours, the next four head columns, and questions begin with the others.
_UNFIT = {*COLOURS, "month", "weekday", "quarter", "year", "what", "how", "which", "where", "for", "does", "are"}


@lru_cache(maxsize=16)
def _vocabulary(longest: int) -> tuple[str, ...]:
    return tuple(word for word in word_list() if 3 <= len(word) <= longest and word not in _UNFIT)


def draw_words_apart(rng: np.random.Generator, count: int, longest: int = 9) -> list[str]:
    """Draws `count` words of 3 to `longest` letters that no one takes for each other: all begin differently."""
    vocabulary = _vocabulary(max(4, longest))
    found: dict[str, str] = {}
    while len(found) < count:
        word = vocabulary[int(rng.integers(len(vocabulary)))]
        found.setdefault(word[:3], word)
    return list(found.values())


def draw_names(
    rng: np.random.Generator, count: int, *, ordered: float = 0.4, longest: int = 9
) -> tuple[str, tuple[str, ...]]:
    """Draws what the categories are and their names, such as ("month", ("Mar", "Apr", "May")).

    `ordered` is the share of months, weekdays, quarters and years; the others are capitalised words. Names have up to
    `longest` letters, or 4 if that is less.
    """
    if rng.random() >= ordered:
        return "", tuple(word.capitalize() for word in draw_words_apart(rng, count, longest))
    kind = str(rng.choice(("month", "month", "weekday", "quarter", "year", "year")))
    if kind == "year":
        first = int(rng.integers(1960, 2031 - count))
        return kind, tuple(str(first + i) for i in range(count))
    if kind == "quarter" and count <= 4:
        return kind, tuple(f"Q{i + 1}" for i in range(count))
    names = _DAYS if kind == "weekday" and count <= len(_DAYS) else _MONTHS
    kind = "weekday" if names is _DAYS else "month"
    first = int(rng.integers(len(names) - count + 1))
    short = longest < 9 or rng.random() < 0.6
    return kind, tuple(name[:3] if short else name for name in names[first : first + count])


def draw_title(rng: np.random.Generator, kind: str) -> str:
    """Draws a title of one to four words; `kind` is what the categories are, "" for nothing in particular."""
    a, b, c = draw_words_apart(rng, 3)
    forms = [a, f"{a} {b}", f"{a} {b}", f"{a} and {b}", f"{a} {b} {c}", f"{a} of {b}"]
    forms += [f"{a} by {kind}", f"{a} per {kind}", f"{a} {b} by {kind}"] * 2 if kind else []
    title = forms[int(rng.integers(len(forms)))]
    style = rng.random()
    return title.title() if style < 0.45 else title.upper() if style < 0.55 else title[0].upper() + title[1:]


def draw_table(
    rng: np.random.Generator, sizes: Sequence[SizeRange], *, fonts: str | Path | Fonts | None = None
) -> tuple[Image.Image, TableFacts]:
    """Draws a table of 2 to 6 columns and 2 to 8 rows below its header.

    Contents are drawn anew, and smaller, until they fit the canvas in legible type. Where not even a small table
    does, the canvas grows around it: below about 160 px it is larger than `sizes` say.
    """
    faces = find_faces(fonts)
    face = faces[int(rng.integers(len(faces)))]
    width, height = draw_size(sizes, _ASPECT, rng)
    smallest = smallest_size(width, height)
    for attempt in range(8):
        ease = 1 - attempt / 7
        columns = int(rng.integers(2, 3 + round((_MAX_COLUMNS - 2) * ease)))
        rows = int(rng.integers(2, 3 + round((_MAX_ROWS - 2) * ease)))
        grid = _Grid.draw(rng, face, columns, rows)
        largest = min(_MAX_SIZE, width / grid.width, height / grid.height)
        if largest >= smallest:
            break
    size = round(smallest * max(1.0, largest / smallest) ** rng.uniform(0.2, 1.0))
    width, height = max(width, round(grid.width * size) + 1), max(height, round(grid.height * size) + 1)
    tones = Tones.draw(rng)
    image = Image.new("RGB", (width, height), tones.paper)
    boxes = grid.paint(image, rng, size, tones)
    return image, TableFacts(width, height, grid.title, grid.header, grid.rows, grid.values, boxes)


@dataclass(frozen=True)
class _Grid:
    """A table's contents and form: `widths` of columns, `pitch` of rows and `margin` around are in ems."""

    face: Face
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    values: tuple[tuple[float, ...] | None, ...]
    widths: tuple[float, ...]
    pitch: float
    pad: float
    margin: float

    @classmethod
    def draw(cls, rng: np.random.Generator, face: Face, columns: int, rows: int) -> _Grid:
        kind, names = draw_names(rng, rows, ordered=0.3)
        words = [word.capitalize() for word in draw_words_apart(rng, columns)]
        header = (kind.capitalize() or words[0], *words[1:])
        cells: list[tuple[str, ...]] = [names]
        values: list[tuple[float, ...] | None] = [None]
        for _ in range(columns - 1):
            column, numbers = _draw_column(rng, rows)
            cells.append(column)
            values.append(numbers)
        title = draw_title(rng, kind) if rng.random() < 0.35 else ""
        pad = float(rng.uniform(0.3, 0.9))
        widths = [
            max(measure(face, _REFERENCE_SIZE, text) for text in (name, *column)) / _REFERENCE_SIZE + 2 * pad
            for name, column in zip(header, cells, strict=True)
        ]
        shortfall = measure(face, _REFERENCE_SIZE, title) / _REFERENCE_SIZE + 2 * pad - sum(widths)
        widths[0] += max(0.0, shortfall)
        pitch, margin = float(rng.uniform(1.45, 2.2)), float(rng.uniform(0.3, 0.8))
        by_row = tuple(zip(*cells, strict=True))
        return cls(face, title, header, by_row, tuple(values), tuple(widths), pitch, pad, margin)

    @property
    def width(self) -> float:
        return sum(self.widths) + 2 * self.margin

    @property
    def height(self) -> float:
        return self.pitch * (len(self.rows) + 1 + bool(self.title)) + 2 * self.margin

    def paint(
        self, image: Image.Image, rng: np.random.Generator, size: int, tones: Tones
    ) -> tuple[tuple[str, Box], ...]:
        """Draws the table somewhere on the image, often spread out over it."""
        margin = self.margin * size
        spread_x, spread_y = rng.uniform(0, 1, size=2) * (rng.random(2) < 0.6)
        slack = image.width - self.width * size
        widths = np.array(self.widths) * size + spread_x * slack / len(self.widths)
        pitch = self.pitch * size
        spare = (image.height - self.height * size) / (len(self.rows) + 1 + bool(self.title))
        pitch += spread_y * min(spare, pitch)
        left = margin + rng.uniform() * (image.width - widths.sum() - 2 * margin)
        top = margin + rng.uniform() * (image.height - pitch * (len(self.rows) + 1 + bool(self.title)) - 2 * margin)
        edges = left + np.concatenate(((0.0,), np.cumsum(widths)))
        pen = Pen(image, self.face)
        if self.title:
            align = float(rng.choice((0.0, 0.5)))
            pen.write(self.title, size, left + align * widths.sum(), top + pitch / 2, tones.ink, align)
            top += pitch
        header_ink = self._rule(pen, rng, size, tones, edges, top + pitch * np.arange(len(self.rows) + 2))
        aligns = [_alignment(rng, numeric=numbers is not None) for numbers in self.values]
        for line, cells in enumerate((self.header, *self.rows)):
            for column, text in enumerate(cells):
                low, high = edges[column] + self.pad * size, edges[column + 1] - self.pad * size
                x = low + aligns[column] * (high - low)
                ink = tones.ink if line else header_ink
                pen.write(text, size, float(x), float(top + (line + 0.5) * pitch), ink, aligns[column])
        return tuple(pen.boxes)

    def _rule(
        self, pen: Pen, rng: np.random.Generator, size: int, tones: Tones, edges: np.ndarray, lines: np.ndarray
    ) -> RGB:
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


def _draw_column(rng: np.random.Generator, rows: int) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    """A column's cells as printed, and their numbers unless they are words."""
    if rng.random() < 0.25:
        return tuple(draw_words_apart(rng, rows)), None
    unit = str(rng.choice(("", "", "", "%", "$")))
    top = 100.0 if unit == "%" else float(rng.choice((10, 50, 100, 100, 1000, 10000)))
    decimals = int(rng.choice((0, 0, 1, 2))) if top <= 100 else 0
    grouped = bool(rng.random() < 0.5)
    numbers = tuple(round(float(rng.uniform(0.02, 1.0)) * top, decimals) for _ in range(rows))
    return tuple(write_number(number, decimals, unit, grouped=grouped) for number in numbers), numbers


def _alignment(rng: np.random.Generator, *, numeric: bool) -> float:
    return float(rng.choice((1.0, 1.0, 0.5, 0.0) if numeric else (0.0, 0.0, 0.5)))
