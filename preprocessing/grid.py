"""Where an image lies on its tiles, as numbers; `patcher.py` chooses it and cuts."""

from __future__ import annotations

from dataclasses import dataclass

PINPOINTS: tuple[tuple[int, int], ...] = tuple(
    (336 * columns, 336 * rows)
    for columns, most_rows in ((1, 6), (2, 6), (3, 6), (4, 4), (5, 3), (6, 3))
    for rows in range(1, most_rows + 1)
)
"""The 28 resolutions (width, height), in pixels, of the released config."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Where one image lies on its tiles.

    `width`, `height`: the source image, in pixels. `tile_cols`, `tile_rows`: tiles of the canvas. `left`, `top`,
    `cols`, `rows`: the part of the canvas's feature map [tile_rows * patches, tile_cols * patches] that shows the image
    rather than the black border, in patches. `patches`: per tile side. `tile`: tile side, in pixels.
    """

    width: int
    height: int
    tile_cols: int
    tile_rows: int
    left: int
    top: int
    cols: int
    rows: int
    patches: int = 24
    tile: int = 336

    @property
    def resolution(self) -> tuple[int, int]:
        """The canvas's (width, height), in pixels."""
        return self.tile_cols * self.tile, self.tile_rows * self.tile

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Where the image lies on the canvas: (left, top, right, bottom), in pixels.

        It keeps its aspect ratio, rounded down to whole pixels and at least one, fills the canvas along one axis and is
        centred on the other.
        """
        canvas_width, canvas_height = self.resolution
        if self.width / self.height > canvas_width / canvas_height:
            width, height = canvas_width, max(1, int(canvas_width * self.height / self.width))
        else:
            width, height = max(1, int(canvas_height * self.width / self.height)), canvas_height
        left, top = (canvas_width - width) // 2, (canvas_height - height) // 2
        return left, top, left + width, top + height

    @property
    def tiles(self) -> int:
        """Tiles that the encoder sees: the thumbnail and the canvas's."""
        return 1 + self.tile_rows * self.tile_cols

    @property
    def tokens(self) -> int:
        """Tokens that the image costs: the thumbnail's patches, and the rows of the crop with a newline after each."""
        return self.patches**2 + self.rows * (self.cols + 1)
