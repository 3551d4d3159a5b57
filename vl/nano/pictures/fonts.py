"""Font faces for printed text: every suitable one that installed font packages, matplotlib or a folder bring."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path

from PIL import ImageFont

from vl.errors import ConfigError

# Families of symbols or mathematics, faces without lower case, and weights too thin to read when small.
_UNSUITABLE = re.compile(
    r"awesome|emoji|symbola|amatic|stixno|stixsiz|stix.*sym|lastresort|display|variable|thin|extralight|hairline"
    r"|smallcaps|^cm|dingbats|^d050000l|biolinum_k",
    re.IGNORECASE,
)
_MONOSPACED = re.compile(r"mono|courier|firacode|hack|inconsolata|cursor", re.IGNORECASE)
_SUFFIXES = (".ttf", ".otf")
# Group names under which Python font packages announce themselves.
_ENTRY_POINTS = ("fonts_ttf", "fonts_otf")


# A serif and a sans that the embedded model never learns from: it is tested on them.
_HELD_OUT = ("Caladea", "Manrope")
FACES = ("all", "learnt", "held-out")

_ACCENTED = "àáâãäåæçèéêëìíîïñòóôõöøùúûüýœ"
LETTERS = f"{_ACCENTED}{_ACCENTED.upper()}ß"
"""Letters beyond ASCII that texts have: those of western Europe's names."""
PRINTED = f"{''.join(map(chr, range(0x20, 0x7F)))}{LETTERS}£€°"
"""What is printed, and every face has to have."""


@dataclass(frozen=True, order=True)
class Face:
    """One font file; `name` is the file's stem, by which faces are sorted and told apart."""

    name: str
    path: str

    @property
    def held_out(self) -> bool:
        """Whether it is of a family that is kept for testing."""
        return self.name.startswith(_HELD_OUT)

    @property
    def monospaced(self) -> bool:
        """Whether all its letters are as wide, by its name."""
        return _MONOSPACED.search(self.name) is not None


@dataclass(frozen=True)
class Fonts:
    """Which faces to print with: those of a folder too, and `part` of them, one of `FACES`."""

    folder: str | None = None
    part: str = "all"


ALL = Fonts()


@lru_cache(maxsize=8)
def find_faces(fonts: Fonts = ALL) -> tuple[Face, ...]:
    """Lists the faces to print with, sorted by name.

    The order, and so everything rendered, depends on the installed fonts alone. Sources, in the order in which the
    first of equal names wins: the given folder (searched recursively for what has all of `PRINTED`), packages with
    `fonts_ttf` or `fonts_otf` entry points, matplotlib's bundled families.

    Raises:
        ConfigError: when no face is found.
    """
    found: dict[str, Face] = {}
    for path in (*_in_folder(fonts.folder), *_in_packages(), *_in_matplotlib()):
        if path.suffix.lower() in _SUFFIXES and not _UNSUITABLE.search(path.stem):
            found.setdefault(path.stem, Face(path.stem, str(path)))
    if fonts.part != "all":
        found = {name: face for name, face in found.items() if face.held_out == (fonts.part == "held-out")}
    if not found:
        where = f" (nor in {fonts.folder})" if fonts.folder else ""
        raise ConfigError(
            f"no fonts to print text with{where}: pip install 'minimax-vl[train]', or set data.mix.fonts to a folder"
        )
    return tuple(sorted(found.values()))


@lru_cache(maxsize=1024)
def open_face(face: Face, size: int) -> ImageFont.FreeTypeFont:
    """Opens a face at a height of `size` pixels per em (cached per process)."""
    # The basic layout engine is the same on every machine; Raqm is an optional part of Pillow's build.
    return ImageFont.truetype(face.path, size, layout_engine=ImageFont.Layout.BASIC)


class _Advances(dict[str, float]):
    """Letters' widths in pixels, measured when they are asked for the first time."""

    def __init__(self, face: Face, size: int) -> None:
        super().__init__()
        self.face, self.size = face, size

    def __missing__(self, letter: str) -> float:
        width = self[letter] = open_face(self.face, self.size).getlength(letter)
        return width


@lru_cache(maxsize=4096)
def advances(face: Face, size: int) -> dict[str, float]:
    """The width of every letter of a face in pixels, at the very size: hinted ones do not grow in proportion.

    Most of the time of measuring is the letters' that are new, so more are kept than fonts are open (per process).
    """
    return _Advances(face, size)


def _in_folder(folder: str | None) -> Iterator[Path]:
    if folder is not None:
        yield from (path for path in sorted(Path(folder).rglob("*")) if _has_letters(path))


def _has_letters(path: Path) -> bool:
    """Whether it is a font that has all that is printed, which not every file of a system's folder is."""
    if path.suffix.lower() not in _SUFFIXES:
        return False
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with TTFont(path, lazy=True) as font:
            return set(map(ord, PRINTED)) <= set(font.getBestCmap() or ())
    except (TTLibError, OSError, AssertionError, KeyError):
        return False


def _in_packages() -> Iterator[Path]:
    for group in _ENTRY_POINTS:
        for entry in metadata.entry_points(group=group):
            for file in (entry.dist and entry.dist.files) or ():
                yield Path(str(file.locate()))


def _in_matplotlib() -> Iterator[Path]:
    spec = util.find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        yield from sorted((Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf").glob("*.ttf"))
