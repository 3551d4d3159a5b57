"""From an image to tiles: dynamic resolution, as the released MiniMax-VL-01 does it.

The image is seen twice: squeezed into one tile (the thumbnail), and at the pinpoint resolution that keeps most of its
pixels, on black, cut into tiles. `Grid` says where the image lies on the tiles' feature map, and so how many tokens it
becomes: the encoder crops by it and the prompt's placeholder expands by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from preprocessing.errors import ImageError
from preprocessing.grid import PINPOINTS, Grid
from preprocessing.resize import resize_planes


@dataclass(frozen=True)
class Patcher:
    """Cuts images into uint8 tiles.

    Args:
        pinpoints: candidate resolutions (width, height), in pixels, multiples of `tile`; the order breaks ties.
        tile: side of a tile, in pixels: the encoder's input.
        patch: side of a ViT patch, in pixels.
        threads: that resize one image; None chooses from the CPUs and the image's size.
    """

    pinpoints: tuple[tuple[int, int], ...] = PINPOINTS
    tile: int = 336
    patch: int = 14
    threads: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "pinpoints", tuple((int(width), int(height)) for width, height in self.pinpoints))
        if self.tile <= 0 or self.patch <= 0 or self.tile % self.patch:
            raise ValueError(f"tile ({self.tile}) must be a positive multiple of patch ({self.patch})")
        wrong = [p for p in self.pinpoints if min(p) <= 0 or p[0] % self.tile or p[1] % self.tile]
        if wrong or not self.pinpoints:
            raise ValueError(f"pinpoints must be positive multiples of the tile ({self.tile}), got {wrong or 'none'}")

    def resolution(self, width: int, height: int) -> tuple[int, int]:
        """The pinpoint (width, height) that shows most of the image's own pixels, then wastes least, then is first."""

        def preference(pinpoint: tuple[int, int]) -> tuple[int, int]:
            scale = min(pinpoint[0] / width, pinpoint[1] / height)
            shown = min(max(1, int(width * scale)) * max(1, int(height * scale)), width * height)
            return shown, shown - pinpoint[0] * pinpoint[1]

        return max(self.pinpoints, key=preference)

    def grid(self, width: int, height: int) -> Grid:
        """The layout of a `width` x `height` image, without its pixels."""
        canvas_width, canvas_height = self.resolution(width, height)
        tile_cols, tile_rows, patches = canvas_width // self.tile, canvas_height // self.tile, self.tile // self.patch
        cols, rows = tile_cols * patches, tile_rows * patches
        left = top = 0
        if width / height > cols / rows:
            top = (rows - max(1, height * cols // width)) // 2
        else:
            left = (cols - max(1, width * rows // height)) // 2
        return Grid(
            width=width,
            height=height,
            tile_cols=tile_cols,
            tile_rows=tile_rows,
            left=left,
            top=top,
            cols=cols - 2 * left,
            rows=rows - 2 * top,
            patches=patches,
            tile=self.tile,
        )

    def __call__(self, image: Image.Image) -> tuple[Tensor, Grid]:
        """Tiles of an RGB image: uint8 [tiles, 3, tile, tile], thumbnail first, then row by row; and their grid.

        Pixels equal those of the released recipe done with Pillow (bicubic resize, paste on black). Normalisation is
        the encoder's. Raises ImageError for another mode than RGB.
        """
        if image.mode != "RGB":
            raise ImageError(f"the patcher takes RGB images, got mode {image.mode}: read images with load_image")
        grid = self.grid(image.width, image.height)
        left, top, right, bottom = grid.box
        sizes = [(self.tile, self.tile), (right - left, bottom - top)]
        thumbnail, resized = resize_planes(image, sizes, self.threads)
        width, height = grid.resolution
        tiles = np.empty((grid.tiles, 3, self.tile, self.tile), np.uint8)
        tiles[0] = thumbnail
        starts = product(range(0, height, self.tile), range(0, width, self.tile))
        for cut, (y, x) in zip(tiles[1:], starts, strict=True):
            # The part of this tile that the image covers, in the canvas's pixels.
            up = max(y, top)
            first = max(x, left)
            down, last = max(up, min(y + self.tile, bottom)), max(first, min(x + self.tile, right))
            if (down - up, last - first) != (self.tile, self.tile):
                cut.fill(0)
            cut[:, up - y : down - y, first - x : last - x] = resized[
                :, up - top : down - top, first - left : last - left
            ]
        return torch.from_numpy(tiles), grid
