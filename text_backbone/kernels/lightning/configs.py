"""Tiles of the lightning attention kernels, and which of them are worth timing on another GPU."""

from __future__ import annotations

from typing import NamedTuple

import torch

from text_backbone.kernels.device import shared_memory


class Tiles(NamedTuple):
    """Tokens of a chunk, columns of a program, warps, pipeline stages, and programs that fill the GPU.

    Segments are as long as they may be while there are about `programs` of them, times heads and column blocks.
    """

    chunk: int
    values: int
    warps: int
    stages: int
    programs: int = 256


Table = dict[int, tuple[Tiles, Tiles, Tiles]]

LARGE_SHARED = 200 * 1024  # bytes

# By head dim: tiles for bfloat16 on Hopper and newer, for bfloat16 on GPUs of less shared memory, for float32 operands.
# A walk writes the output, a gain a piece's share of the state, for the backward too; BACKWARD is the walk there.
# 64 rows and 4 warps are one `wgmma` each; two such programs a multiprocessor hide each other's waits, for which they
# must stay under 114 KiB of shared memory and 256 registers a thread without spilling.
WALK: Table = {
    32: (Tiles(64, 32, 4, 3), Tiles(64, 32, 4, 2), Tiles(32, 32, 4, 1)),
    64: (Tiles(64, 64, 4, 3), Tiles(32, 64, 4, 2), Tiles(32, 32, 8, 1)),
    128: (Tiles(64, 64, 4, 3), Tiles(32, 64, 8, 2), Tiles(16, 32, 4, 1)),
}
GAIN: Table = {
    32: (Tiles(64, 32, 4, 3), Tiles(64, 32, 4, 2), Tiles(32, 32, 4, 1)),
    64: (Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 2), Tiles(32, 32, 4, 1)),
    128: (Tiles(64, 128, 8, 3, 512), Tiles(64, 128, 8, 2, 512), Tiles(32, 32, 8, 1)),
}
BACKWARD: Table = {
    32: (Tiles(64, 32, 4, 3), Tiles(64, 32, 4, 2), Tiles(32, 32, 4, 1)),
    64: (Tiles(64, 64, 4, 3), Tiles(32, 64, 4, 2), Tiles(32, 32, 8, 1)),
    128: (Tiles(64, 64, 4, 2), Tiles(32, 64, 8, 2), Tiles(16, 32, 4, 1)),
}

# Of `hopper.walk_kernel` and of dk and dv in `hopper_backward.walk_back_kernel`; their programs are alone on their
# multiprocessors.
HOPPER = Tiles(64, 128, 8, 3, 128)
HOPPER_BACKWARD = Tiles(64, 128, 8, 3, 64)

# What to choose the tables' first entries from, by table and head dim.
CANDIDATES = {
    "WALK": {
        32: [Tiles(64, 32, 4, stages, programs) for stages in (2, 3, 4) for programs in (256, 512)],
        64: [Tiles(64, 64, 4, stages, programs) for stages in (2, 3) for programs in (256, 512)]
        + [Tiles(64, 64, 4, 4), Tiles(128, 64, 8, 2)],
        128: [Tiles(64, 64, 4, stages, programs) for stages in (2, 3) for programs in (128, 256, 512)]
        + [Tiles(64, 64, 4, 4), Tiles(128, 64, 8, 2, 128), Tiles(128, 128, 8, 2, 128), Tiles(128, 128, 8, 2)],
    },
    "GAIN": {
        32: [Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 3), Tiles(64, 32, 4, 4), Tiles(128, 32, 4, 3)],
        64: [Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 4), Tiles(64, 64, 4, 3, 512)],
        128: [Tiles(64, 128, 8, stages, programs) for stages in (2, 3) for programs in (256, 512)]
        + [Tiles(64, 64, 4, 3, 512), Tiles(64, 64, 4, 4, 512)],
    },
    "BACKWARD": {
        32: [Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 3)],
        64: [Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 3), Tiles(128, 64, 8, 2)],
        128: [Tiles(64, 64, 4, 1), Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 3), Tiles(128, 64, 8, 2)],
    },
}


def pick(table: Table, d: int, dtype: torch.dtype, device: torch.device) -> Tiles:
    hopper, ampere, wide = table[d]
    if dtype != torch.bfloat16:
        return wide
    return hopper if device.type != "cuda" or shared_memory(device) >= LARGE_SHARED else ampere
