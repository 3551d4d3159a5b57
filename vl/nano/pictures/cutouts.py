"""The everyday things that are drawn, and the pictures of them that a folder holds.

`vl.nano.prepare_things` makes the folder: "openmoji:cat", a picture of the list, is its file "openmoji/cat.webp".
Of each thing about a third of the pictures are kept for testing, drawings by the same hand together. A hand that is
kept for one thing is learnt from for others: what is tested is whether a new drawing is known, not a new style.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
from PIL import Image

from vl.errors import ConfigError
from vl.nano.pictures.canvas import RGB

WHOLE = ("photos", "gcompris-photos")
"""The collections of photographs, which are shown whole; of the others things are cut out."""
_REDRAWN = {"emojione1": "emojione", "fluent3d": "fluent"}  # the same hand, some years before, or shaded
_ONE_HAND = {
    *("openmoji", "fluent", "emojione", "fxemoji", "noto1"),
    *("streamline", "iconpark", "game", "mdi", "ph"),
}
_BY_FOLDER = "gcompris"  # a collection in which each folder is of one hand


class Thing(NamedTuple):
    """A thing: how a sentence names it ("a cat"), what it is ("animal"), and its pictures ("collection:item").

    The last `added` pictures were added when it was settled which of the others are held out.
    """

    phrase: str
    kind: str
    pictures: tuple[str, ...]
    added: int = 0

    @property
    def name(self) -> str:
        return self.phrase.removeprefix("a ").removeprefix("an ")


class Cutout(NamedTuple):
    """A picture of a thing, RGBA and as small as its ink, and samples of its colours."""

    thing: Thing
    source: str
    image: Image.Image

    @property
    def whole(self) -> bool:
        return self.source.split(":", 1)[0] in WHOLE

    @property
    def colours(self) -> tuple[RGB, ...]:
        pixels = np.asarray(self.image.reduce(max(1, min(self.image.size) // 8))).reshape(-1, 4)
        return tuple((int(r), int(g), int(b)) for r, g, b, a in pixels if a > 128)


@lru_cache(maxsize=1)
def thing_list() -> tuple[Thing, ...]:
    """The things of `things.txt`, by their names."""
    text = resources.files("vl.nano.pictures").joinpath("things.txt").read_text("utf-8")
    rows = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return tuple(
        Thing(phrase, kind, tuple(" ".join((first, *later)).split()), len(" ".join(later).split()))
        for phrase, kind, first, *later in rows
    )


def path_of(picture: str) -> str:
    """The file of a picture in the folder."""
    return f"{picture.replace(':', '/', 1)}.webp"


@lru_cache(maxsize=1024)
def held_out_pictures(thing: Thing) -> frozenset[str]:
    """About a third of a thing's pictures: those that are kept for testing. What is added changes no other's part."""
    kept: list[str] = []
    sides: dict[str, bool] = {}  # by hand: whether it is kept
    settled = len(thing.pictures) - thing.added
    for pictures, total in ((thing.pictures[:settled], settled), (thing.pictures[settled:], len(thing.pictures))):
        hands: dict[str, list[str]] = {}
        for picture in pictures:
            hands.setdefault(_hand(picture), []).append(picture)
        for hand in sorted(hands, key=lambda hand: crc32(f"{thing.name} {hand}".encode())):
            if sides.setdefault(hand, 3 * len(kept) + 1 < total):
                kept += hands[hand]
    return frozenset(kept)


def pictures_of(thing: Thing, part: str) -> tuple[str, ...]:
    """A thing's pictures of a part, one of `fonts.FACES`."""
    held = held_out_pictures(thing)
    return tuple(one for one in thing.pictures if part == "all" or (one in held) == (part == "held-out"))


@lru_cache(maxsize=8)
def find_cutouts(folder: str | None, part: str) -> dict[Thing, tuple[str, ...]]:
    """The pictures of a part that a folder has, by thing.

    Raises:
        ConfigError: if it has none, or none is named.
    """
    how = "python -m vl.nano.prepare_things FOLDER makes one (docs/training.md says from what)"
    if folder is None:
        raise ConfigError(f"no pictures of things: set data.mix.cutouts to a folder of them; {how}")
    root = Path(folder)
    found = {thing: tuple(_present(root, pictures_of(thing, part))) for thing in thing_list()}
    found = {thing: pictures for thing, pictures in found.items() if pictures}
    if not found:
        raise ConfigError(f"data.mix.cutouts {folder!r} has no pictures of things of the part {part!r}: {how}")
    return found


@lru_cache(maxsize=4096)
def open_cutout(folder: str, thing: Thing, picture: str) -> Cutout:
    """A picture of the folder (cached per process: 112 px at most, but for photographs)."""
    with Image.open(Path(folder, path_of(picture))) as image:
        return Cutout(thing, picture, image.convert("RGBA"))


def _hand(picture: str) -> str:
    collection = picture.split(":", 1)[0]
    collection = _REDRAWN.get(collection, collection)
    if collection == _BY_FOLDER:
        return picture.rpartition("/")[0]
    return collection if collection in _ONE_HAND else picture


def _present(root: Path, pictures: tuple[str, ...]) -> Iterator[str]:
    return (picture for picture in pictures if (root / path_of(picture)).is_file())
