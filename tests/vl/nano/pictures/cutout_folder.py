"""A folder of pictures of things for tests: discs, each thing in a colour of its own."""

from __future__ import annotations

import colorsys
from pathlib import Path

from PIL import Image, ImageDraw

from vl.nano.pictures.cutouts import WHOLE, path_of, thing_list


def colour_of(index: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(index * 0.381966 % 1, 0.9, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def make_cutouts(folder: Path, things: int | None = None) -> str:
    """Writes the pictures of the first things of the list, or of all: cut-outs, and photographs of one colour."""
    for index, thing in enumerate(thing_list()[:things]):
        for picture in thing.pictures:
            file = folder / path_of(picture)
            file.parent.mkdir(parents=True, exist_ok=True)
            image = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
            if picture.split(":")[0] in WHOLE:
                image = Image.new("RGB", (96, 64), colour_of(index))
            else:
                ImageDraw.Draw(image).rectangle((0, 0, 39, 29), fill=(*colour_of(index), 255))
            image.save(file, lossless=True, method=0)
    return str(folder)
