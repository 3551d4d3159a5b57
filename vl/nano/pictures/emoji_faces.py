"""The emoji that are drawn, the fonts that have them, and their glyphs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from vl.errors import ConfigError
from vl.nano.pictures.canvas import RGB
from vl.nano.pictures.fonts import Face, find_faces, open_face

_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/Library/Fonts")
_FILES = (
    ("NotoColorEmoji", "NotoColorEmoji*.ttf"),
    ("Twemoji", "Twemoji*.ttf"),
    ("Symbola", "Symbola*.[ot]tf"),
)
_COLOURED = ("NotoColorEmoji", "Twemoji")
_ALWAYS = "DejaVuSans"
_BITMAP_EM = 109  # px, the only size that Noto Color Emoji has
_OUTLINE_EMS = (128, 384)  # px; outlines are scaled from these, as every size of a font that is open takes memory
_LAYER_EMS = (128, 256)  # px, the same of coloured outlines, whose pictures are four times as large


class Emoji(NamedTuple):
    """An emoji of the list: its code point, its name, and whether ink of one colour does not show what it is."""

    code: int
    name: str
    needs_colour: bool


@dataclass(frozen=True)
class EmojiFace:
    """A font that has some of the emoji; `codes` are those that it shows recognisably, ascending.

    `bitmaps`: it has one size alone; in colour others are of layers of outlines (COLR).
    """

    name: str
    path: str
    colour: bool
    bitmaps: bool
    codes: tuple[int, ...] = field(repr=False, compare=False)

    def em(self, size: float) -> int:
        """The pixels per em that suit a drawing of `size` pixels."""
        ems = (_BITMAP_EM,) if self.bitmaps else _LAYER_EMS if self.colour else _OUTLINE_EMS
        return next((em for em in ems if em >= size), ems[-1])


@lru_cache(maxsize=1)
def emoji_list() -> tuple[Emoji, ...]:
    """The 600 emoji that are drawn, by code point."""
    text = resources.files("vl.nano.pictures").joinpath("emoji.txt").read_text("utf-8")
    rows = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return tuple(Emoji(int(code, 16), name, bool(rest)) for code, name, *rest in rows)


def find_emoji_faces(folder: str | Path | None = None, *, require_colour: bool = False) -> tuple[EmojiFace, ...]:
    """Lists the faces to draw emoji with, those in colour first.

    Noto Color Emoji, Twemoji and Symbola are looked for in `folder` and then in the system's folders of fonts,
    recursively; DejaVu Sans comes with matplotlib.

    Raises:
        ConfigError: when there is none, or with `require_colour` none that shows all emoji of the list in colour.
    """
    faces = _find_emoji_faces(str(folder) if folder else None)
    fix = "apt-get install fonts-noto-color-emoji, or name a folder that holds a NotoColorEmoji.ttf of bitmaps (CBDT)"
    if not faces:
        raise ConfigError(f"no font has emoji: pip install 'minimax-vl[train]', or {fix}")
    best = max((len(face.codes) for face in faces if face.colour), default=0)
    if require_colour and best < len(emoji_list()):
        found = f"the colour font has only {best} of {len(emoji_list())} emoji" if best else "no colour font of emoji"
        raise ConfigError(f"{found}: {fix}")
    return faces


@lru_cache(maxsize=4)
def _find_emoji_faces(folder: str | None) -> tuple[EmojiFace, ...]:
    folders = [Path(name).expanduser() for name in (*([folder] if folder else ()), *_FOLDERS)]
    files = [(name, [p for where in folders for p in sorted(where.rglob(pattern))]) for name, pattern in _FILES]
    files.append((_ALWAYS, [Path(face.path) for face in find_faces() if face.name == _ALWAYS]))
    usable = (next(filter(None, (_open_emoji_face(name, path) for path in paths)), None) for name, paths in files)
    return tuple(face for face in usable if face is not None)


def _open_emoji_face(name: str, path: Path) -> EmojiFace | None:
    """The face in a file; None if it is damaged or its colours are in a format that Pillow does not draw."""
    try:  # the training extra brings it, with matplotlib
        from fontTools.ttLib import TTFont, TTLibError
    except ImportError:
        return None
    try:
        with TTFont(path, lazy=True) as font:
            codes, bitmaps, outlines = font.getBestCmap() or {}, "CBDT" in font, "glyf" in font or "CFF " in font
            layers = "COLR" in font and font["COLR"].version == 0
            # Pillow measures a glyph of layers by its own outlines: one without any would not be drawn.
            glyphs = font["glyf"] if layers else {}
            blank = {code for code, glyph in codes.items() if layers and not glyphs[glyph].numberOfContours}
    except (OSError, TTLibError):
        return None
    colour = bitmaps or layers
    if not colour and (not outlines or name in _COLOURED):
        return None
    listed = (e for e in emoji_list() if e.code in codes and e.code not in blank)
    shown = tuple(e.code for e in listed if colour or not e.needs_colour)
    return EmojiFace(name, str(path), colour, bitmaps, shown) if shown else None


class Glyph(NamedTuple):
    """What a face shows for a code point: `picture` is RGBA or, of outlines, a mask, cropped to the ink.

    `reach` is how far the ink goes from the middle, in lengths of the longer side; `colours` are samples of it.
    """

    picture: Image.Image
    reach: float
    colours: tuple[RGB, ...]


@lru_cache(maxsize=2048)
def draw_glyph(face: EmojiFace, code: int, em: int) -> Glyph:
    """The glyph of a face at `em` pixels per em, which `EmojiFace.em` gives (cached per process)."""
    font = open_face(Face(face.name, face.path), em)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(chr(code)))
    canvas = Image.new("RGBA" if face.colour else "L", (right - left + 8, bottom - top + 8))
    pen, fill = ImageDraw.Draw(canvas), None if face.colour else 255
    pen.text((4 - left, 4 - top), chr(code), fill=fill, font=font, embedded_color=face.colour)
    canvas = canvas.crop(canvas.getbbox())
    alpha = np.asarray(canvas.getchannel("A") if face.colour else canvas)
    y, x = np.nonzero(alpha > 16)
    reach = np.hypot(x + 0.5 - canvas.width / 2, y + 0.5 - canvas.height / 2).max() + 0.5
    colours: tuple[RGB, ...] = ()
    for step in (12, 3, 1) if face.colour else ():  # the finer ones for thin lines
        pixels = np.asarray(canvas.reduce(step)).reshape(-1, 4)
        colours = colours or tuple((int(r), int(g), int(b)) for r, g, b, a in pixels if a > 128)
    return Glyph(canvas, float(reach) / max(canvas.size), colours)
