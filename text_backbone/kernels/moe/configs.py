"""Tile sizes of the mixture of experts' kernels, as data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from text_backbone.kernels.device import shared_memory

_LARGE_SHARED = 227 * 1024  # bytes, of Hopper


class Tile(NamedTuple):
    """A program's block: m rows by n output units, k deep per step, in so many warps and pipeline stages.

    group: how many tiles of rows take a tile of weights one after another; swap: weights on the left of the product;
    tma: weights come through the tensor memory accelerator; short: half the rows where an expert's last rows fit;
    registers: the most a thread may use, where the compiler would otherwise take so many that one program fills an SM.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    group: int = 16
    swap: bool = False
    tma: bool = False
    short: bool = False
    registers: int | None = None


# Under 99 KiB of shared memory each, so that they also run on consumer Ampere.
TRAINING = {
    "up": Tile(128, 128, 64, 8, 3),
    "down": Tile(128, 128, 32, 4, 4),
    "dh": Tile(64, 32, 64, 4, 3, registers=128),
    "dx": Tile(128, 128, 64, 4, 3),
    "dw": Tile(128, 128, 32, 8, 5),
}

# Layers so wide that a program's block is a small part of them. Hopper's shared memory.
WIDE = 2048
TRAINING_WIDE = {
    "up": Tile(128, 256, 64, 8, 4, tma=True, short=True),
    "down": Tile(128, 256, 64, 8, 4, tma=True, short=True),
    "dh": Tile(128, 128, 64, 8, 3, tma=True, registers=128),
    "dx": Tile(128, 256, 64, 8, 4, group=8, tma=True, short=True),
    "dw": Tile(128, 256, 64, 8, 4, tma=True),
}
# float32 without tensor cores: registers bound the tile.
TRAINING_FLOAT32 = {
    "up": Tile(32, 64, 32, 4, 2),
    "down": Tile(32, 64, 32, 4, 2),
    "dh": Tile(32, 64, 32, 4, 2),
    "dx": Tile(32, 64, 32, 4, 2),
    "dw": Tile(64, 64, 16, 4, 2),
}

# 16-bit inference, by the mean number of rows of an expert: (at most so many, up, down). Hopper's shared memory.
INFERENCE = (
    (6, Tile(16, 64, 128, 4, 4, swap=True), Tile(16, 64, 128, 4, 4, swap=True)),
    (14, Tile(32, 64, 128, 4, 4, swap=True), Tile(32, 64, 128, 4, 4, swap=True)),
    (48, Tile(64, 128, 64, 4, 6, swap=True), Tile(64, 128, 64, 4, 6, swap=True)),
    (1 << 31, Tile(128, 256, 64, 8, 4, tma=True, short=True), Tile(128, 256, 64, 8, 4, tma=True, short=True)),
)
# The same on GPUs with less than 227 KiB of shared memory to a program.
INFERENCE_SMALL = (
    (14, Tile(16, 64, 64, 4, 4, swap=True), Tile(16, 64, 64, 4, 4, swap=True)),
    (1 << 31, TRAINING["up"], TRAINING["down"]),
)

# The same for codes of eight bits, by their type: int8 is multiplied in 16 bits, e4m3 as it is.
INFERENCE_8 = {
    torch.int8: (
        (6, Tile(16, 128, 256, 4, 3, swap=True, tma=True), Tile(16, 128, 256, 4, 3)),
        (14, Tile(32, 128, 128, 4, 4), Tile(32, 128, 128, 4, 4)),
        (48, Tile(64, 128, 64, 4, 5, swap=True, tma=True), Tile(64, 128, 64, 4, 5, swap=True, tma=True)),
        (
            1 << 31,
            Tile(256, 128, 64, 8, 4, swap=True, tma=True),
            Tile(256, 128, 64, 8, 4, swap=True, tma=True, short=True),
        ),
    ),
    torch.float8_e4m3fn: (
        (6, Tile(16, 64, 256, 4, 5, swap=True), Tile(16, 64, 256, 4, 5, swap=True)),
        (14, Tile(32, 64, 256, 4, 5, swap=True), Tile(32, 64, 256, 4, 5, swap=True)),
        (48, Tile(64, 128, 128, 4, 4, swap=True, tma=True), Tile(64, 128, 128, 4, 4, swap=True, tma=True)),
        (1 << 31, Tile(128, 256, 128, 8, 4, tma=True, short=True), Tile(128, 256, 128, 8, 4, tma=True, short=True)),
    ),
}
INFERENCE_8_SMALL = {
    torch.int8: (
        (14, Tile(16, 64, 64, 4, 4, swap=True), Tile(16, 64, 64, 4, 4, swap=True)),
        (1 << 31, Tile(64, 128, 64, 4, 3, swap=True), Tile(64, 128, 64, 4, 3, swap=True)),
    ),
    torch.float8_e4m3fn: (
        (14, Tile(16, 64, 128, 4, 4, swap=True), Tile(16, 64, 128, 4, 4, swap=True)),
        (1 << 31, Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 8, 3)),
    ),
}


class Gemv(NamedTuple):
    """One token's block: n output units, k deep per step; `most` assignments (tokens * top_k) are worked this way.

    stages: of weights that are on their way to shared memory; None reads them into registers.
    """

    n: int
    k: int
    warps: int
    most: int
    stages: int | None = None


GEMV_UP = Gemv(1, 1024, 8, 4)
GEMV_DOWN = Gemv(8, 1024, 8, 4)
# of codes of eight bits
GEMV_UP_8 = Gemv(4, 512, 4, 4, stages=4)
GEMV_DOWN_8 = Gemv(8, 512, 4, 4, stages=4)


def training_tile(op: str, x: Tensor) -> Tile:
    """The tile of one of the products of a training step over x [T, hidden]."""
    if x.dtype == torch.float32:
        return TRAINING_FLOAT32[op]
    return (TRAINING_WIDE if x.shape[1] >= WIDE and large_shared_memory(x.device) else TRAINING)[op]


def inference_tiles(
    rows: int, experts: int, dtype: torch.dtype, device: torch.device, codes: torch.dtype | None = None
) -> tuple[Tile, Tile]:
    """Tiles of the two products for `rows` assignments of x in `dtype` in all, with weights in it too or in `codes`."""
    if dtype == torch.float32 and codes != torch.float8_e4m3fn:
        return TRAINING_FLOAT32["up"], TRAINING_FLOAT32["down"]
    if codes is None:
        table = INFERENCE if large_shared_memory(device) else INFERENCE_SMALL
    else:
        table = (INFERENCE_8 if large_shared_memory(device) else INFERENCE_8_SMALL)[codes]
    return next((up, down) for most, up, down in table if rows <= most * experts)


def large_shared_memory(device: torch.device) -> bool:
    """Whether tiles for Hopper's shared memory fit."""
    return device.type == "cuda" and shared_memory(device) >= _LARGE_SHARED


def fit(size: int, tile: int) -> int:
    """The largest block up to `tile` (a power of two) that covers `size` with at most a quarter of waste, or 16."""
    while tile > 16 and -(-size // tile) * tile > 1.25 * size:
        tile //= 2
    return tile


def fit_inner(size: int, tile: int) -> int:
    """The largest block up to `tile` that divides `size`, so that the inner loop needs no mask, or 32."""
    while tile > 32 and size % tile:
        tile //= 2
    return tile
