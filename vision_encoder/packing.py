"""Where each patch feature goes in an image's token sequence.

An image arrives as `[thumbnail, tile (0, 0), tile (0, 1), ...]`, each of `patches x patches` features. Its tokens are
the thumbnail's features, then the tiles' put back on one map, cropped to the window that the picture covers (the rest
is padding), with one newline token at the end of every row. Packing is pure data movement, so it is planned once as
two index vectors over all images of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Grid(Protocol):
    """The tiling of one image. `left, top, cols, rows` is its window, in patches, on the map of its tiles."""

    @property
    def tile_cols(self) -> int: ...
    @property
    def tile_rows(self) -> int: ...
    @property
    def left(self) -> int: ...
    @property
    def top(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def tiles(self) -> int: ...
    @property
    def tokens(self) -> int: ...


@dataclass(frozen=True)
class Plan:
    """Token `target[i]` is patch feature `source[i]`; every other token is a newline.

    `source` int64 [kept], ascending, indexes the features of all tiles flattened to `[tiles * patches**2]`, so the
    features of any run of tiles are one slice of it. `target` int64 [kept] indexes the `tokens` output rows.
    """

    source: Tensor
    target: Tensor
    tokens: int


def plan_packing(grids: Sequence[Grid], patches: int) -> Plan:
    """Plan the packing of the images of a batch, tiles and tokens in the order of `grids`.

    Args:
        grids: one per image.
        patches: patches along one side of a tile.

    Raises:
        ValueError: if a grid's window leaves its map, or its counts contradict each other.
    """
    sources, targets = [], []
    first_feature = first_token = 0
    for index, grid in enumerate(grids):
        _check(grid, patches, index)
        thumbnail = torch.arange(patches**2)
        window = patches**2 + _window(grid, patches)  # [rows, cols], after the thumbnail
        token = patches**2 + torch.arange(grid.rows * (grid.cols + 1)).view(grid.rows, grid.cols + 1)
        sources += [first_feature + thumbnail, first_feature + window.flatten()]
        targets += [first_token + thumbnail, first_token + token[:, :-1].flatten()]
        first_feature += grid.tiles * patches**2
        first_token += grid.tokens
    if not sources:
        return Plan(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), 0)
    source, order = torch.cat(sources).sort()
    return Plan(source, torch.cat(targets)[order], first_token)


def _window(grid: Grid, patches: int) -> Tensor:
    """Feature index, within the image's tiles, of each patch of the window: int64 [rows, cols]."""
    y = torch.arange(grid.top, grid.top + grid.rows)[:, None]
    x = torch.arange(grid.left, grid.left + grid.cols)[None, :]
    tile = (y // patches) * grid.tile_cols + x // patches
    return tile * patches**2 + (y % patches) * patches + x % patches


def _check(grid: Grid, patches: int, index: int) -> None:
    height, width = grid.tile_rows * patches, grid.tile_cols * patches
    inside = 0 <= grid.top < grid.top + grid.rows <= height and 0 <= grid.left < grid.left + grid.cols <= width
    if not inside:
        raise ValueError(
            f"grid {index}: window of {grid.rows} x {grid.cols} patches at row {grid.top}, column {grid.left} "
            f"does not fit on its {height} x {width} map"
        )
    tiles, tokens = 1 + grid.tile_rows * grid.tile_cols, patches**2 + grid.rows * (grid.cols + 1)
    if (grid.tiles, grid.tokens) != (tiles, tokens):
        raise ValueError(
            f"grid {index}: says {grid.tiles} tiles and {grid.tokens} tokens, but its rows and columns "
            f"make {tiles} and {tokens} with {patches} patches along a tile"
        )
