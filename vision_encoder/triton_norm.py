"""`norm.shifted_norm` as a Triton kernel: a program takes a few whole rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _ELEMENTS = 4, 4096  # of a program, at most


@triton.jit(do_not_specialize=["rows"])
def _shifted_norm(x, shift, weight, bias, out, rows, eps,
                  HIDDEN: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i = tl.arange(0, WIDE)[None, :]
    inside = i < HIDDEN
    mask = (row < rows) & inside
    values = tl.load(x + row * HIDDEN + i, mask=mask, other=0.0).to(tl.float32)
    values += tl.load(shift + i, mask=inside, other=0.0)
    mean = tl.sum(values, 1, keep_dims=True) / HIDDEN
    values = tl.where(inside, values - mean, 0.0)
    spread = tl.rsqrt(tl.sum(values * values, 1, keep_dims=True) / HIDDEN + eps)
    gain = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(bias + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * HIDDEN + i, (values * spread * gain + offset).to(out.dtype.element_ty), mask=mask)


def shifted_norm(x: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Same as `norm.shifted_norm`."""
    rows, hidden = x.shape
    out = torch.empty_like(x)
    wide = triton.next_power_of_2(hidden)
    some = max(1, min(_ROWS, _ELEMENTS // wide))
    _shifted_norm[(triton.cdiv(rows, some),)](
        x, shift, weight, bias, out, rows, eps, HIDDEN=hidden, WIDE=wide, ROWS=some, num_warps=4
    )
    return out
