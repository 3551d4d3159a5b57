"""The picture of what the model sees: the image on its canvas, cut into numbered tiles."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from preprocessing import Grid

Colour: TypeAlias = tuple[int, int, int]

WHITE, INK, AMBER = (255, 255, 255), (17, 18, 23), (255, 181, 38)
HATCH_GROUND, HATCH_LINE = (26, 27, 33), (70, 72, 84)
TILE_PIXELS = 336
"""Side of a drawn tile at most: as the encoder's own at full size, and large enough to read for smaller encoders."""


def draw_tiles(image: Image.Image, grid: Grid, *, side: int = 1344) -> Image.Image:
    """Draw how `image` is cut: padding hatched, tiles numbered from 1, the thumbnail (tile 0) inset at the lower right.

    Args:
        image: the image that `grid` was made for, any mode.
        grid: its layout, from `Patcher.grid`.
        side: longest side of the picture, in pixels.

    Returns:
        RGB picture of `tile_cols * t` x `tile_rows * t` pixels, where `t` is `tile_pixels(grid, side)`.
    """
    tile = tile_pixels(grid, side)
    rgb = image.convert("RGB")
    left, top, right, bottom = replace(grid, tile=tile).box
    picture = hatched(grid.tile_cols * tile, grid.tile_rows * tile, period=max(8, tile // 14))
    picture.paste(rgb.resize((right - left, bottom - top), Image.Resampling.BICUBIC, reducing_gap=2.0), (left, top))
    draw_lines(picture, tile)
    text = max(6, min(max(max(picture.size) // 36, tile // 12), tile // 4))  # readable on a picture shown at a third
    for number in range(1, grid.tiles):
        row, col = divmod(number - 1, grid.tile_cols)
        paste_badge(picture, str(number), (col * tile + tile // 24, row * tile + tile // 24), text, WHITE)
    paste_thumbnail(picture, rgb, tile, text)
    return picture


def tile_pixels(grid: Grid, side: int) -> int:
    """Side of one drawn tile, in pixels, so that the longest side of the picture is at most `side`."""
    return max(1, min(TILE_PIXELS, side // max(grid.tile_cols, grid.tile_rows)))


def hatched(width: int, height: int, period: int) -> Image.Image:
    """Diagonal lines, `period` pixels apart along each axis: the part of the canvas that the image leaves empty."""
    y, x = np.ogrid[:height, :width]
    distance = np.abs((x + y) % period - period / 2)  # from the nearest line, [height, width]
    weight = np.clip(period / 8 - distance + 0.5, 0, 1)[..., None]
    pixels = np.array(HATCH_GROUND) * (1 - weight) + np.array(HATCH_LINE) * weight
    return Image.fromarray(pixels.astype(np.uint8), "RGB")


def draw_lines(picture: Image.Image, tile: int) -> None:
    """Tile borders: white between two dark lines, so that they show on any image."""
    draw = ImageDraw.Draw(picture)
    core = max(1, max(picture.size) // 450)
    outline = max(1, core // 2)
    for colour, reach in ((INK, outline), (WHITE, 0)):
        for x in range(tile, picture.width, tile):
            draw.rectangle((x - core // 2 - reach, 0, x - core // 2 + core - 1 + reach, picture.height), fill=colour)
        for y in range(tile, picture.height, tile):
            draw.rectangle((0, y - core // 2 - reach, picture.width, y - core // 2 + core - 1 + reach), fill=colour)
    draw.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=INK, width=core)


def paste_thumbnail(picture: Image.Image, rgb: Image.Image, tile: int, text: int) -> None:
    """The whole image squeezed into a square, framed, in the lower right corner."""
    inner = max(1, int(tile * 0.42))
    frame = max(1, tile // 84)
    margin = tile // 24
    card = Image.new("RGB", (inner + 4 * frame, inner + 4 * frame), INK)
    ImageDraw.Draw(card).rectangle((frame, frame, inner + 3 * frame - 1, inner + 3 * frame - 1), fill=AMBER)
    squeezed = rgb.resize((inner, inner), Image.Resampling.BICUBIC, reducing_gap=2.0)
    card.paste(squeezed, (2 * frame, 2 * frame))
    left, top = picture.width - card.width - margin, picture.height - card.height - margin
    picture.paste(card, (left, top))
    paste_badge(picture, "0", (left + 3 * frame, top + 3 * frame), text, AMBER)


def paste_badge(picture: Image.Image, text: str, corner: tuple[int, int], size: int, colour: Colour) -> None:
    badge = badge_of(text, size, colour)
    picture.paste(badge, corner, badge)


@lru_cache(maxsize=256)
def badge_of(text: str, size: int, colour: Colour) -> Image.Image:
    """A number of `size` pixels on a dark rounded plate, RGBA; drawn four times as large for smooth edges."""
    scale = 4
    font = ImageFont.load_default(size * scale)
    left, top, right, bottom = font.getbbox(text)
    height = int(size * scale * 1.25)
    width = max(height, int(right - left + size * scale * 0.6))
    plate = Image.new("RGBA", (width, height), (*INK, 0))
    draw = ImageDraw.Draw(plate)
    draw.rounded_rectangle((0, 0, width - 1, height - 1), radius=height // 4, fill=(*INK, 215))
    draw.text(((width - left - right) / 2, (height - top - bottom) / 2), text, font=font, fill=(*colour, 255))
    return plate.reduce(scale)
