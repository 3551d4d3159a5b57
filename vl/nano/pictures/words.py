"""Printed words: short lines of text in many faces, sizes and colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vl.nano.pictures.canvas import RGB, Background, Box, SizeRange, draw_size, hsv
from vl.nano.pictures.fonts import Face, Fonts, advance, find_faces, line_width, open_face

MAX_WORDS = 4
_MIN_SIZE, _MAX_SIZE = 14, 220  # px per em
_MIN_SIZE_SHARE = 0.012  # of the longer side: the largest canvases are shrunk before they are seen
_MAX_SPACING = 1.3  # distance of two baselines in font heights
_REFERENCE_SIZE = 64  # px per em at which letters are measured; widths grow in proportion
_CAPITALS, _DESCENDERS = 0.75, 0.2  # how far letters reach above and below the baseline, in ems
_MIN_CONTRAST = 230.0
_ASPECT = 5.0
# Letters whose two cases look alike, and l, i, o, 0, 1 that look like one another, cannot be read off a random string.
_UPPER, _LOWER, _DIGITS = "ABDEFGHJKLMNPQRTY", "abdefghjkmnpqrty", "0123456789"


@dataclass(frozen=True)
class WordsFacts:
    """Ground truth of a printed text: its lines joined by spaces, the face's name and the size in pixels per em.

    `boxes`: every character but the spaces, in reading order, with the room that it takes in its line.
    """

    width: int
    height: int
    text: str
    lines: tuple[str, ...]
    face: str
    size: int
    boxes: tuple[tuple[str, Box], ...]


@lru_cache(maxsize=1)
def word_list() -> tuple[str, ...]:
    """The words that are printed: about four thousand lower-case English words, sorted."""
    return tuple(resources.files("vl.nano.pictures").joinpath("words.txt").read_text("utf-8").split())


def draw_words(
    rng: np.random.Generator,
    sizes: Sequence[SizeRange],
    *,
    max_words: int = MAX_WORDS,
    fonts: str | Path | Fonts | None = None,
    textures: float = 0.0,
    size: int | None = None,
) -> tuple[Image.Image, WordsFacts]:
    """Draws a line or two of text on a backdrop.

    The type is as large as the canvas allows, or smaller by up to a factor, or `size` px per em; words that cannot be
    printed at the least legible size, or at this one, are left out.
    """
    faces = find_faces(fonts)
    face = faces[int(rng.integers(len(faces)))]
    width, height = draw_size(sizes, _ASPECT, rng)
    smallest = size or max(_MIN_SIZE, round(_MIN_SIZE_SHARE * max(width, height)))
    words = draw_text(rng, int(rng.integers(1, max_words + 1)))
    lines, largest = _lay_out(rng, face, words, width, height, smallest)
    size = size or round(smallest * (largest / smallest) ** rng.uniform(0.3, 1.0))
    block = _Block(lines, open_face(face, size), spacing=float(rng.uniform(1.0, _MAX_SPACING)))
    width, height = max(width, block.width + 2 * block.margin), max(height, block.height + 2 * block.margin)
    background = Background.draw(rng, textures)
    image = background.paint(width, height, rng)
    boxes = block.paint(image, rng, draw_ink(rng, background))
    return image, WordsFacts(width, height, " ".join(lines), lines, face.name, size, boxes)


def draw_text(rng: np.random.Generator, count: int) -> list[str]:
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
    return [_random_string(rng, alphabet) for _ in words]


def caption_words(facts: WordsFacts) -> str:
    """The canonical caption, such as 'The text reads "hello world".'."""
    return f'The text reads "{facts.text}".'


def _number(rng: np.random.Generator) -> str:
    kind = rng.random()
    digits = "".join(_DIGITS[int(i)] for i in rng.integers(10, size=int(rng.integers(1, 6))))
    if kind < 0.6:
        return digits
    if kind < 0.75:
        return f"{digits}.{int(rng.integers(100)):02d}"
    if kind < 0.85:
        return f"${digits}"
    if kind < 0.93:
        return f"{int(rng.integers(101))}%"
    return f"{int(rng.integers(24))}:{int(rng.integers(60)):02d}"


def _random_string(rng: np.random.Generator, alphabet: str) -> str:
    return "".join(alphabet[int(i)] for i in rng.integers(len(alphabet), size=int(rng.integers(3, 8))))


@dataclass(frozen=True)
class _Block:
    """Lines of text in one font; `spacing` is the distance of two baselines in font heights."""

    lines: tuple[str, ...]
    font: ImageFont.FreeTypeFont
    spacing: float

    @property
    def margin(self) -> int:
        """Room around the lines: the last letter of an italic leans out of its advance."""
        return 2 + round(self.font.size) // 12

    @property
    def width(self) -> int:
        return round(max(line_width(self.font, line) for line in self.lines))

    @property
    def height(self) -> int:
        ascent, descent = self.font.getmetrics()
        return round((ascent + descent) * (1 + self.spacing * (len(self.lines) - 1)))

    def paint(self, image: Image.Image, rng: np.random.Generator, ink: RGB) -> tuple[tuple[str, Box], ...]:
        """Prints the lines somewhere on the image; returns where each character came to lie."""
        left = self.margin + rng.uniform() * (image.width - self.width - 2 * self.margin)
        top = self.margin + rng.uniform() * (image.height - self.height - 2 * self.margin)
        align = float(rng.choice((0.0, 0.5)))
        ascent, descent = self.font.getmetrics()
        draw = ImageDraw.Draw(image)
        boxes: list[tuple[str, Box]] = []
        for number, line in enumerate(self.lines):
            indent = align * (self.width - line_width(self.font, line))
            baseline = top + ascent + number * self.spacing * (ascent + descent)
            draw.text((left + indent, baseline), line, fill=ink, font=self.font, anchor="ls")
            edges = [*accumulate((advance(self.font, c) for c in line), initial=left + indent)]
            upper, lower = baseline - _CAPITALS * self.font.size, baseline + _DESCENDERS * self.font.size
            boxes += [(c, (edges[i], upper, edges[i + 1], lower)) for i, c in enumerate(line) if c != " "]
        return tuple(boxes)


def _lay_out(
    rng: np.random.Generator, face: Face, words: list[str], width: int, height: int, smallest: int
) -> tuple[tuple[str, ...], float]:
    """Breaks words into lines and finds the largest size (px per em) at which they fit.

    Any number of lines that fits at `smallest` is as likely; when none does, the last word is dropped. A single word
    that does not fit stays, at `smallest`: the canvas grows around it.
    """
    for count in range(len(words), 0, -1):
        fitting = []
        for rows in range(1, count + 1):
            lines = tuple(" ".join(part) for part in np.array_split(words[:count], rows))
            ems = max(line_width(open_face(face, _REFERENCE_SIZE), line) for line in lines) / _REFERENCE_SIZE
            fit = min((width - 4) / ems, (height - 4) / (_line_height(face) * (1 + _MAX_SPACING * (rows - 1))))
            if fit >= smallest:
                fitting.append((lines, min(fit, _MAX_SIZE)))
        if fitting:
            return fitting[int(rng.integers(len(fitting)))]
    return (words[0],), smallest


@lru_cache(maxsize=1024)
def _line_height(face: Face) -> float:
    return sum(open_face(face, _REFERENCE_SIZE).getmetrics()) / _REFERENCE_SIZE


def draw_ink(rng: np.random.Generator, background: Background) -> RGB:
    """A colour that stands out from the backdrop: random, or else the better of black and white."""
    for _ in range(4):
        colour = hsv(rng.uniform(0, 360), rng.uniform(0, 1), rng.uniform(0, 1))
        if background.contrast(colour) >= _MIN_CONTRAST:
            return colour
    return max(((0, 0, 0), (255, 255, 255)), key=background.contrast)
