"""Tile sizes of the products with a row-scaled matrix, as data."""

from __future__ import annotations

from typing import NamedTuple

import torch

from text_backbone.kernels.device import multiprocessors
from text_backbone.kernels.moe.configs import TRAINING_FLOAT32, Tile, large_shared_memory


class Vector(NamedTuple):
    """A block of one row, as `Gemv` is one of a token; up to `most` rows are worked this way."""

    n: int
    k: int
    warps: int
    most: int
    stages: int | None = None


VECTOR = Vector(1, 1024, 4, 2)
UNPACK = 384  # rows from which on int8 is unpacked first

# By the number of rows: (at most so many, the tile). Hopper's shared memory.
INT8 = (
    (16, Tile(16, 64, 256, 4, 4)),
    (32, Tile(32, 128, 128, 4, 4)),
    (128, Tile(64, 128, 128, 4, 3, swap=True, tma=True)),
    (1 << 31, Tile(128, 128, 64, 8, 4, swap=True)),
)
FP8 = (
    (16, Tile(16, 64, 256, 4, 5, swap=True)),
    (32, Tile(32, 64, 128, 4, 6, swap=True)),
    (128, Tile(64, 64, 128, 4, 5, swap=True)),
    (1 << 31, Tile(128, 256, 128, 8, 4, tma=True)),
)
# For 17 to 128 rows of a matrix with so few units that those tiles would leave multiprocessors idle.
NARROW = {
    torch.int8: Tile(64, 64, 256, 4, 3, swap=True, tma=True),
    torch.float8_e4m3fn: Tile(32, 64, 128, 4, 6, swap=True),
}
# The same as the tables above on GPUs with less than 227 KiB of shared memory to a program.
INT8_SMALL = (
    (64, Tile(16, 64, 64, 4, 4, swap=True)),
    (1 << 31, Tile(64, 128, 64, 4, 3, swap=True)),
)
FP8_SMALL = (
    (64, Tile(16, 64, 128, 4, 4, swap=True)),
    (1 << 31, Tile(128, 128, 64, 8, 3)),
)


def unpacks(rows: int, dtype: torch.dtype, codes: torch.dtype) -> bool:
    """Whether rows of `dtype` are multiplied by unpacked values."""
    return codes == torch.int8 and rows >= UNPACK and dtype != torch.float32


def dense_tile(rows: int, units: int, dtype: torch.dtype, codes: torch.dtype, device: torch.device) -> Tile:
    """The tile of a product of rows of `dtype` with a matrix of `codes`, which has so many units (its rows)."""
    if codes == torch.int8 and dtype == torch.float32:
        return TRAINING_FLOAT32["down"]
    if not large_shared_memory(device):
        return _of(INT8_SMALL if codes == torch.int8 else FP8_SMALL, rows)
    tile = _of(INT8 if codes == torch.int8 else FP8, rows)
    if 16 < rows <= 128 and -(-units // tile.n) < multiprocessors(device):
        return NARROW[codes]
    return tile


def _of(table: tuple[tuple[int, Tile], ...], rows: int) -> Tile:
    return next(tile for most, tile in table if rows <= most)
