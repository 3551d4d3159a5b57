"""The drawing of the tiles: what must be where, for any shape of image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from demo.overlay import HATCH_GROUND, HATCH_LINE, INK, WHITE, draw_tiles, tile_pixels
from preprocessing import Patcher

GREY = (128, 128, 128)
PATCHER = Patcher()


def drawn(width: int, height: int, side: int = 1344) -> tuple[np.ndarray, int, tuple[int, int, int, int]]:
    """Picture of a grey image [height, width, 3], its tile side and where the image lies."""
    grid = PATCHER.grid(width, height)
    picture = draw_tiles(Image.new("RGB", (width, height), GREY), grid, side=side)
    tile = tile_pixels(grid, side)
    assert picture.mode == "RGB"
    assert picture.size == (grid.tile_cols * tile, grid.tile_rows * tile)
    return np.asarray(picture), tile, replace(grid, tile=tile).box


@pytest.mark.parametrize("size", [(1920, 1080), (640, 480), (2016, 2016), (3000, 300), (500, 1900)])
def test_tile_borders_are_drawn_and_nothing_between_them(size: tuple[int, int]) -> None:
    pixels, tile, (left, top, right, bottom) = drawn(*size)
    row = pixels[(top + bottom) // 2 // tile * tile + tile * 3 // 4]  # below the badges, off the horizontal borders
    assert all((row[x] == WHITE).all() for x in range(tile, pixels.shape[1], tile))
    column = pixels[:, (left + right) // 2 // tile * tile + tile * 3 // 4]
    assert all((column[y] == WHITE).all() for y in range(tile, pixels.shape[0], tile))
    middle = pixels[top:bottom, left:right]
    inside = middle[(middle == WHITE).all(-1)].shape[0] / middle[..., 0].size
    assert inside < 0.08, "lines must not hide the image"


def test_a_border_shows_on_white_and_on_black() -> None:
    for shade in (0, 255):
        grid = PATCHER.grid(672, 336)
        pixels = np.asarray(draw_tiles(Image.new("RGB", (672, 336), (shade,) * 3), grid))
        across = pixels[250, 336 - 6 : 336 + 6].tolist()
        assert list(WHITE) in across
        assert list(INK) in across


def test_padding_is_hatched_and_the_image_is_not() -> None:
    pixels, tile, (left, top, right, bottom) = drawn(640, 480)
    assert (left, right) == (0, 2 * tile)
    assert top == tile * 2 - bottom > 0
    band = pixels[2 : top - 1, tile // 2 : tile - 8].reshape(-1, 3)
    assert {HATCH_GROUND, HATCH_LINE} <= set(map(tuple, band.tolist()))
    assert tuple(pixels[top + 2, tile // 2]) == GREY == tuple(pixels[bottom - 3, tile // 2])
    assert tuple(pixels[top - 2, tile // 2]) != GREY


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1), (64, 64)])
def test_slivers_and_tiny_images_are_drawn(size: tuple[int, int]) -> None:
    pixels, _, (left, top, right, bottom) = drawn(*size)
    assert right > left
    assert bottom > top
    assert (pixels[top:bottom, left:right] == GREY).all(-1).any()


@pytest.mark.parametrize("side", [1, 50, 200, 1344, 5000])
def test_side_bounds_the_picture(side: int) -> None:
    pixels, tile, _ = drawn(1920, 1080, side=side)
    assert max(pixels.shape) <= max(side, 6)
    assert tile <= 336


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_any_mode_is_drawn(mode: str) -> None:
    picture = draw_tiles(Image.new(mode, (400, 300)), PATCHER.grid(400, 300))
    assert picture.mode == "RGB"


def test_thumbnail_is_the_whole_image_squeezed() -> None:
    """Left half red, right half blue, twice as wide as high: the inset is square and half and half."""
    image = Image.new("RGB", (672, 336), "red")
    image.paste("blue", (336, 0, 672, 336))
    pixels = np.asarray(draw_tiles(image, PATCHER.grid(672, 336)))
    inset = pixels[200:310, 535:640]  # inside the second tile, which is all blue but for the inset
    red, blue = (inset == (255, 0, 0)).all(-1).sum(), (inset == (0, 0, 255)).all(-1).sum()
    assert red > 2000
    assert blue > 2000
