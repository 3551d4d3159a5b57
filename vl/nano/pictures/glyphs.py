"""Lines of print put together from letters that were drawn before, with the pixels that Pillow gives the whole line.

Pillow loads every letter of a line four times, hints and all, and of a page of small type that is half of the work. It
draws each on whole pixels, whatever stands beside it, so a letter that was drawn once by itself can be laid down again.
Only faces with a table of kerning are left to Pillow: there the place of a letter depends on the one before.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from vl.nano.pictures.canvas import RGB
from vl.nano.pictures.fonts import Face, advances, open_face

_UNIT = 64  # of FreeType: parts of a pixel


class Glyph(NamedTuple):
    """A letter by itself: its ink, where that begins from the pen on the baseline, and what it needs of a line.

    `least` is how far left of the pen it may reach (0 or less) and `most` how far above the baseline (0 or more), in
    pixels; `advance` in 64ths of one.
    """

    ink: Image.Image | None
    left: int
    top: int
    least: int
    most: int
    advance: int


def draw_line(draw: ImageDraw.ImageDraw, text: str, face: Face, size: int, ink: RGB, left: float, base: float) -> bool:
    """Prints a line that begins at `left` on the baseline `base`, as `draw.text(..., anchor="ls")` does.

    Returns:
        Whether it did; what begins outside of the picture and faces with kerning are left to Pillow.
    """
    if not text or left < 0 or base < 0 or _has_kerning(face.path):
        return False
    known = _glyphs(face, size)
    glyphs = [known[letter] for letter in text]
    pens = [0, *np.cumsum([glyph.advance for glyph in glyphs]).tolist()]
    least = min(glyph.least + _pixel(pen) for glyph, pen in zip(glyphs, pens, strict=False))
    # The beginning is rounded as Pillow does it, in single precision and about the corner of its own picture.
    x = _rounded(-min(0, least), left % 1) + _UNIT * min(0, least)
    y = _pixel(-_rounded(most := max(glyph.most for glyph in glyphs), base % 1)) + most
    placed = [
        (glyph.ink, int(left) + _pixel(x + pen) + glyph.left, int(base) - y + glyph.top)
        for glyph, pen in zip(glyphs, pens, strict=False)
        if glyph.ink
    ]
    if placed:
        first, top = min(x for _, x, _ in placed), min(y for _, _, y in placed)
        last, bottom = max(x + one.width for one, x, _ in placed), max(y + one.height for one, _, y in placed)
        line = Image.new("L", (last - first, bottom - top))
        for one, x, y in placed:
            line.paste(255, (x - first, y - top), one)
        draw.bitmap((first, top), line, fill=ink)
    return True


class _Glyphs(dict[str, Glyph]):
    """The letters of a face at a size, drawn by Pillow when they are asked for the first time."""

    def __init__(self, face: Face, size: int) -> None:
        super().__init__()
        self.face, self.size = face, size

    def __missing__(self, letter: str) -> Glyph:
        mask, (left, top) = open_face(self.face, self.size).getmask2(letter, "L", anchor="ls")
        picture = Image.new("L", mask.size)
        picture.im.paste(mask, (0, 0, *mask.size))
        wide = round(_UNIT * advances(self.face, self.size)[letter])
        if box := picture.getbbox():
            glyph = Glyph(picture.crop(box), left + box[0], top + box[1], left, -top, wide)
        else:
            glyph = Glyph(None, 0, 0, left, -top, wide)
        self[letter] = glyph
        return glyph


@lru_cache(maxsize=64)
def _glyphs(face: Face, size: int) -> dict[str, Glyph]:
    """For a few pictures: the next one has another face or size."""
    return _Glyphs(face, size)


@lru_cache(maxsize=2048)
def _has_kerning(path: str) -> bool:
    """Whether a font file has the table of kerning that FreeType looks at."""
    with open(path, "rb") as file:
        head = file.read(12)
        directory = file.read(16 * int.from_bytes(head[4:6], "big"))
    return any(directory[at : at + 4] == b"kern" for at in range(0, len(directory), 16))


def _pixel(units: int) -> int:
    return (units + _UNIT // 2) // _UNIT


def _rounded(whole: int, part: float) -> int:
    """Pixels, 0 or more, in 64ths; halves go up."""
    return int(np.floor(np.float64((np.float32(whole) + np.float32(part)) * np.float32(_UNIT)) + 0.5))
