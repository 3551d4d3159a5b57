"""Photographs of a folder, parts of which are pictures of nothing that the model knows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from numpy.random import Generator
from PIL import Image, ImageOps

from vl.errors import ConfigError
from vl.nano.pictures.canvas import pick
from vl.nano.pictures.cutouts import WHOLE, thing_list
from vl.nano.pictures.english import belongs
from vl.nano.pictures.variety import blend_photos, vary_photo

SHARE = 1 / 3
"""Of the pictures of nothing, where there are photographs."""
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_BLENDED = 0.12


@dataclass(frozen=True)
class Photographs:
    """Which photographs there are beside what is drawn, and what is made of them.

    Attributes:
        folder: with photographs; None for none.
        part: those of it that are taken, by their names: see `english.belongs`.
        share: of the pictures of nothing, and of such grounds, that are photographs, where there is a folder.
        varied: the share of their parts that are of any size, turned, of other colours, or lie over another.
    """

    folder: str | None = None
    part: str = "all"
    share: float = SHARE
    varied: float = 0.0

    def draw(self, rng: Generator, width: int, height: int) -> Image.Image:
        """A part of one of them. Left out are those that show one of the things, by their names as well.

        Raises:
            ConfigError: when there is no folder, or it has no photographs of the part.
        """
        if self.folder is None:
            raise ConfigError("photographs come from a folder that data.mix.photos names: give a recipe that does")
        photos = _open_photos(self.folder, self.part)
        if not self.varied or rng.random() >= self.varied:
            return crop_photo(rng, width, height, pick(rng, photos))
        image = vary_photo(rng, width, height, pick(rng, photos))
        if rng.random() < _BLENDED:
            return blend_photos(rng, image, vary_photo(rng, width, height, pick(rng, photos)))
        return image


NONE = Photographs()


def crop_photo(rng: Generator, width: int, height: int, photo: Image.Image, least: float = 0.5) -> Image.Image:
    """A part of a photograph, of these sides in proportion, perhaps mirrored, lighter or greyer.

    It is `least` as long as the longest part that there is, or longer.
    """
    scale = min(photo.width / width, photo.height / height) * float(rng.uniform(least, 1.0))
    wide, high = width * scale, height * scale
    left, top = rng.random() * (photo.width - wide), rng.random() * (photo.height - high)
    box = (left, top, left + wide, top + high)
    image = photo.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    image = ImageOps.mirror(image) if rng.random() < 0.5 else image
    if rng.random() < 0.2:
        image = image.convert("L").convert("RGB")
    gain = float(rng.uniform(0.8, 1.2))
    return image.point([min(255, round(value * gain)) for value in range(256)] * 3)


@lru_cache(maxsize=4)
def _open_photos(folder: str, part: str) -> tuple[Image.Image, ...]:
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in _SUFFIXES and not _named(path)]
    found = [Image.open(path).convert("RGB") for path in paths if belongs(path.name, part)]
    if not found:
        which = "" if part == "all" else f" of the {part} part"
        raise ConfigError(f"data.mix.photos {folder!r} holds no pictures{which} ({', '.join(_SUFFIXES)})")
    return tuple(found)


def _named(path: Path) -> bool:
    """Whether a photograph is one of a thing that has a name: it is in the list of things, or called by one."""
    stem = path.stem.lower()
    return stem in _photographed() or "".join(filter(str.isalpha, stem)) in {thing.name for thing in thing_list()}


@lru_cache(maxsize=1)
def _photographed() -> frozenset[str]:
    pictures = (picture for thing in thing_list() for picture in thing.pictures)
    named = (one.split(":", 1) for one in pictures)
    return frozenset(item.rpartition("/")[2].lower() for collection, item in named if collection in WHOLE)
