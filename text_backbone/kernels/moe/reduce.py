"""Sums over the parts that several programs left, in a fixed order (atomics would make gradients irreproducible)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["parts"])
def _sum_kernel(partial, out, parts, SIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, parts, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < parts)[:, None] & (column < SIZE)[None, :]
        total += tl.load(partial + row.to(tl.int64)[:, None] * SIZE + column[None, :], mask=inside, other=0.0)
    tl.store(out + column, tl.sum(total, 0).to(out.dtype.element_ty), mask=column < SIZE)


def sum_partials(partial: Tensor, out: Tensor) -> None:
    """out[...] = partial[parts, ...].sum(0), both contiguous: float32 partial, any float `out`."""
    parts, size = len(partial), out.numel()
    rows = min(16, triton.next_power_of_2(parts))
    _sum_kernel[(triton.cdiv(size, 256),)](partial, out, parts, size, rows, 256, num_warps=4)
