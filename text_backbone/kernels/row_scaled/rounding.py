"""Rounding rows to e4m3, in Triton: what `reference.row_codes` specifies, bit for bit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from text_backbone.kernels.overlap import early, wait
from text_backbone.kernels.row_scaled.reference import MOST

_LONGEST = 16384  # values that a program holds at a time: 64 registers of a thread in eight warps


@triton.jit
def _extremes(x, at, inside):
    """Values of a row, the largest magnitude of those that are numbers, and whether one is not finite."""
    some = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    return some, tl.max(tl.abs(some), 0), tl.max((some - some != 0).to(tl.int32), 0)


@triton.jit
def _codes_kernel(
    x, codes, scales, COLUMNS: tl.constexpr, MOST: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr
):
    """codes[row] and scales[row] of a row of x; a row longer than BLOCK is read twice."""
    wait(EARLY)
    row = tl.program_id(0).to(tl.int64)
    x += row * COLUMNS
    at = tl.arange(0, BLOCK)
    some, largest, odd = _extremes(x, at, at < COLUMNS)
    for first in range(BLOCK, COLUMNS, BLOCK):
        _, larger, odder = _extremes(x + first, at, first + at < COLUMNS)
        largest, odd = tl.maximum(largest, larger), tl.maximum(odd, odder)
    scale = tl.where(odd != 0, float("nan"), tl.div_rn(largest, MOST))
    tl.store(scales + row, scale)
    step = tl.maximum(scale, 1.1754943508222875e-38)  # the smallest normal number
    codes += row * COLUMNS
    for first in range(0, COLUMNS, BLOCK):
        if COLUMNS > BLOCK:
            some = tl.load(x + first + at, mask=first + at < COLUMNS, other=0.0).to(tl.float32)
        code = tl.minimum(tl.maximum(tl.div_rn(some, step), -MOST), MOST)
        tl.store(codes + first + at, code.to(codes.dtype.element_ty), mask=first + at < COLUMNS)


def row_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Same as `reference.row_codes`, of contiguous x [..., columns]; of a row that is not finite the scale is NaN."""
    columns = x.shape[-1]
    codes, scales = torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_empty(x.shape[:-1], dtype=torch.float32)
    block = min(_LONGEST, triton.next_power_of_2(columns))
    _codes_kernel[(scales.numel(),)](
        x, codes, scales, columns, MOST, block, num_warps=max(1, min(8, block // 512)), **early(x.device)
    )
    return codes, scales
