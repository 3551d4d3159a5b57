"""The functions of `reference` as Triton kernels: a program takes a few whole rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _ELEMENTS = 4, 4096  # of a program, at most


@triton.jit
def _normed(values, weight, bias, i, eps, HIDDEN: tl.constexpr):
    """LayerNorm of float32 rows [ROWS, WIDE], whose columns from HIDDEN on are not theirs."""
    inside = i < HIDDEN
    mean = tl.sum(tl.where(inside, values, 0.0), 1, keep_dims=True) / HIDDEN
    values = tl.where(inside, values - mean, 0.0)
    spread = tl.rsqrt(tl.sum(values * values, 1, keep_dims=True) / HIDDEN + eps)
    gain = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(bias + i, mask=inside, other=0.0).to(tl.float32)
    return values * spread * gain + offset


@triton.jit(do_not_specialize=["rows"])
def _shifted_norm(x, shift, weight, bias, out, rows, eps,
                  HIDDEN: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i = tl.arange(0, WIDE)[None, :]
    inside = i < HIDDEN
    mask = (row < rows) & inside
    values = tl.load(x + row * HIDDEN + i, mask=mask, other=0.0).to(tl.float32)
    values += tl.load(shift + i, mask=inside, other=0.0)
    values = _normed(values, weight, bias, i, eps, HIDDEN)
    tl.store(out + row * HIDDEN + i, values.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _embedded_norm(patches, token, positions, weight, bias, out, rows, eps,
                   TOKENS: tl.constexpr, HIDDEN: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i = tl.arange(0, WIDE)[None, :]
    inside = i < HIDDEN
    mask = (row < rows) & inside
    tile, place = row // TOKENS, row % TOKENS
    patch = tl.load(patches + (row - tile - 1) * HIDDEN + i, mask=mask & (place > 0), other=0.0).to(tl.float32)
    first = tl.load(token + i, mask=inside, other=0.0).to(tl.float32)
    values = tl.where(place > 0, patch, first)
    values += tl.load(positions + place * HIDDEN + i, mask=mask, other=0.0).to(tl.float32)
    values = _normed(values, weight, bias, i, eps, HIDDEN)
    tl.store(out + row * HIDDEN + i, values.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _shifted(x, shift, rows, HIDDEN: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i = tl.arange(0, WIDE)[None, :]
    mask = (row < rows) & (i < HIDDEN)
    values = tl.load(x + row * HIDDEN + i, mask=mask).to(tl.float32)
    values += tl.load(shift + i, mask=i < HIDDEN)
    tl.store(x + row * HIDDEN + i, values.to(x.dtype.element_ty), mask=mask)


def _sizes(rows: int, hidden: int) -> tuple[tuple[int], dict[str, int]]:
    """The grid, and the shape of a program."""
    wide = triton.next_power_of_2(hidden)
    some = max(1, min(_ROWS, _ELEMENTS // wide))
    return (triton.cdiv(rows, some),), {"HIDDEN": hidden, "WIDE": wide, "ROWS": some, "num_warps": 4}


def shifted_norm(x: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Same as `reference.shifted_norm`."""
    grid, sizes = _sizes(*x.shape)
    out = torch.empty_like(x)
    _shifted_norm[grid](x, shift, weight, bias, out, len(x), eps, **sizes)
    return out


def embedded_norm(
    patches: Tensor, token: Tensor, positions: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Same as `reference.embedded_norm`."""
    tokens, hidden = positions.shape
    out = patches.new_empty(len(patches) * tokens, hidden)
    grid, sizes = _sizes(*out.shape)
    _embedded_norm[grid](patches, token, positions, weight, bias, out, len(out), eps, TOKENS=tokens, **sizes)
    return out


def shifted(x: Tensor, shift: Tensor) -> Tensor:
    """Same as `reference.shifted`."""
    grid, sizes = _sizes(*x.shape)
    _shifted[grid](x, shift, len(x), **sizes)
    return x
