"""Hay and needles in print: plain pages of text, a sentence to a line."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vl.errors import ConfigError, InputError

SIDE = 672
"""Of a page, in px: four tiles and the thumbnail in the released resolutions."""
LINES = 22
_TYPE, _PITCH, _MARGIN, _COLUMNS = 20, 28, 28, 54  # px, px, px, characters


def set_lines(hay: Iterator[str], count: int) -> list[str]:
    """`count` lines of hay; sentences that do not fit one are broken."""
    lines = (line for sentence in hay for line in textwrap.wrap(sentence.strip(), _COLUMNS))
    return list(islice(lines, count))


def draw_page(lines: Sequence[str]) -> Image.Image:
    """Up to `LINES` lines in black on white: RGB, `SIDE` x `SIDE`.

    Raises:
        ConfigError: without matplotlib, whose face is used.
        InputError: for a character that the face does not have: it would be a box on the page.
    """
    if unknown := sorted(filter(_is_box, set().union(*lines))):
        raise InputError(f"pages cannot be printed with {unknown[0]!r}, which their face, DejaVu Sans, lacks")
    page = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        pen.text((_MARGIN, _MARGIN + number * _PITCH), line, fill="black", font=_font())
    return page


@cache
def _is_box(character: str) -> bool:
    """Whether the face draws its sign for unknown characters."""
    unknown, drawn = (_font().getmask(text) for text in ("\uffff", character))
    return drawn.size == unknown.size and bytes(drawn) == bytes(unknown)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """A face that comes with a library, so that pages are the same everywhere."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ConfigError("pages are printed in a face of matplotlib: pip install 'minimax-vl[eval]'") from error
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), _TYPE)
