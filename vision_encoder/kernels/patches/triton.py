"""Tiles cut into rows of patches, in one pass over the pixels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _unfolded(tiles, centres, out, SIDE: tl.constexpr, PATCH: tl.constexpr, COPIES: tl.constexpr, BLOCK: tl.constexpr):
    """A program takes some of the pixels of one row of patches, in the order in which `out` has them."""
    GRID: tl.constexpr = SIDE // PATCH
    DEPTH: tl.constexpr = 3 * PATCH * PATCH
    line = tl.program_id(0).to(tl.int64)  # tile * GRID + row of patches
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = i < GRID * DEPTH
    patch, column = i // DEPTH, i % DEPTH
    channel, y, x = column // (PATCH * PATCH), column // PATCH % PATCH, column % PATCH
    source = tiles + line // GRID * (3 * SIDE * SIDE) + line % GRID * (PATCH * SIDE)
    pixel = tl.load(source + (channel * SIDE + y) * SIDE + patch * PATCH + x, mask=mask, other=0).to(tl.float32)
    pixel = (pixel - tl.load(centres + channel, mask=mask, other=0.0).to(tl.float32)).to(out.dtype.element_ty)
    target = out + line * (GRID * COPIES * DEPTH) + patch * (COPIES * DEPTH) + column
    for copy in tl.static_range(COPIES):
        tl.store(target + copy * DEPTH, pixel, mask=mask)


def unfolded(tiles: Tensor, patch: int, centres: Tensor, copies: int) -> Tensor:
    """Same as `reference.unfolded`."""
    n, _, side, _ = tiles.shape
    grid, depth = side // patch, 3 * patch**2
    out = torch.empty(n * grid**2, copies * depth, dtype=centres.dtype, device=tiles.device)
    _unfolded[n * grid, triton.cdiv(grid * depth, _BLOCK)](
        tiles.contiguous(), centres, out, SIDE=side, PATCH=patch, COPIES=copies, BLOCK=_BLOCK, num_warps=4
    )
    return out
