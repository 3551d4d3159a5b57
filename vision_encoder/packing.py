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

import numpy as np
import torch
from numpy.typing import NDArray
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

    By NumPy, in one thread: where other processes have the CPUs, as in training, PyTorch's threads wait for each
    other at every one of these small steps, longer than the GPU takes for the batch.

    Args:
        grids: one per image.
        patches: patches along one side of a tile.

    Raises:
        ValueError: if a grid's window leaves its map, or its counts contradict each other.
    """
    plans: dict[tuple[int, ...], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}  # a batch repeats a few shapes
    sources, targets = [], []
    first_feature = first_token = 0
    for index, grid in enumerate(grids):
        check_grid(grid, patches, index)
        shape = (grid.tile_rows, grid.tile_cols, grid.top, grid.left, grid.rows, grid.cols)
        if shape not in plans:
            plans[shape] = _image_plan(*shape, patches)
        source, target = plans[shape]
        sources.append(first_feature + source)
        targets.append(first_token + target)
        first_feature += grid.tiles * patches**2
        first_token += grid.tokens
    if not sources:
        return Plan(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), 0)
    source, target = np.concatenate(sources), np.concatenate(targets)
    return Plan(torch.from_numpy(source), torch.from_numpy(target), first_token)


def send(index: Tensor, device: torch.device) -> Tensor:
    """A copy of a host's tensor on the device; from pinned memory, or the host would wait for what the GPU has to do.

    That is filled by NumPy, see `plan_packing`.
    """
    if device.type == "cuda":
        pinned = torch.empty(index.shape, dtype=index.dtype, pin_memory=True)
        pinned.numpy()[:] = index.numpy()
        index = pinned
    return index.to(device, non_blocking=True)


def _image_plan(
    tile_rows: int, tile_cols: int, top: int, left: int, rows: int, cols: int, patches: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One image's `source` and `target` int64 [kept], counted from its first feature and its first token."""
    # Row and column in the window of each feature in its order, [tile_rows, tile_cols, patches, patches] broadcast.
    y = np.arange(tile_rows * patches).reshape(-1, 1, patches, 1) - top
    x = np.arange(tile_cols * patches).reshape(1, -1, 1, patches) - left
    kept = (y >= 0) & (y < rows) & (x >= 0) & (x < cols)
    thumbnail = np.arange(patches**2)
    source = patches**2 + kept.ravel().nonzero()[0]
    target = (patches**2 + y * (cols + 1) + x)[kept]
    return np.concatenate((thumbnail, source)), np.concatenate((thumbnail, target))


def check_grid(grid: Grid, patches: int, index: int) -> None:
    """Raises the ValueError of `plan_packing`; `index` is what to call the image."""
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
