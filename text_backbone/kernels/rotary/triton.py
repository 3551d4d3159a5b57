"""Partial rotary embedding of queries and keys in one launch, with the write to the cache pages if there are any.

Every (token, head) pair is a row of d numbers, and rows that follow each other lie next to each other in memory, so a
program turns a run of them whatever the head count. The programs of one launch serve q first, then k, then v.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from text_backbone.kernels.overlap import early, wait
from text_backbone.kernels.rotary import reference

_ROWS, _WARPS = 32, 4
_ANGLES = 1024  # of one program


@triton.jit
def _put(out, at, a, b, rest, i, j, mask, rest_mask, R: tl.constexpr):
    """Store the two turned halves and, if there is one, the rest of the rows that start at `out + at`."""
    dtype = out.dtype.element_ty
    tl.store(out + at + i, a.to(dtype), mask=mask)
    tl.store(out + at + R // 2 + i, b.to(dtype), mask=mask)
    if rest is not None:
        tl.store(out + at + R + j, rest.to(dtype), mask=rest_mask)


@triton.jit
def _turn(x, out, pages, page_rows, table, block, tokens, stride,
          HEADS: tl.constexpr, D: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
          REST: tl.constexpr, INVERSE: tl.constexpr):  # fmt: skip
    """Turn ROWS rows of x [tokens, HEADS, D] into `out` (contiguous) and, if given, into their rows of the pages."""
    row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    token, head = row // HEADS, row % HEADS
    inside = token < tokens
    at = token * stride + head * D
    i, j = tl.arange(0, HALF)[None, :], tl.arange(0, REST)[None, :]
    mask, rest_mask = inside & (i < R // 2), inside & (j < D - R)
    cos = tl.load(table + token * R + i, mask=mask, other=0.0)  # [ROWS, HALF]
    sin = tl.load(table + token * R + R // 2 + i, mask=mask, other=0.0)
    if INVERSE:
        sin = -sin
    x_a = tl.load(x + at + i, mask=mask, other=0.0).to(tl.float32)
    x_b = tl.load(x + at + R // 2 + i, mask=mask, other=0.0).to(tl.float32)
    # rounded here, so that the pages get the very numbers that are returned
    a = (x_a * cos - x_b * sin).to(out.dtype.element_ty)
    b = (x_b * cos + x_a * sin).to(out.dtype.element_ty)
    rest = None
    if D > R:
        rest = tl.load(x + at + R + j, mask=rest_mask, other=0.0)
    _put(out, row * D, a, b, rest, i, j, mask, rest_mask, R)
    if pages is not None:
        slot = tl.load(page_rows + token, mask=inside, other=0)
        _put(pages, (slot * HEADS + head) * D, a, b, rest, i, j, mask, rest_mask, R)


@triton.jit(do_not_specialize=["tokens", "q_blocks", "kv_blocks"])
def _rotary(q, k, v, q_out, k_out, keys, values, page_rows, table, tokens, q_blocks, kv_blocks,
            q_stride, k_stride, v_stride,
            HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr,
            HALF: tl.constexpr, REST: tl.constexpr, WHOLE: tl.constexpr, INVERSE: tl.constexpr,
            EARLY: tl.constexpr):  # fmt: skip
    wait(EARLY)
    block = tl.program_id(0)
    if block < q_blocks:
        _turn(q, q_out, None, None, table, block, tokens, q_stride, HEADS, D, R, ROWS, HALF, REST, INVERSE)
    elif block < q_blocks + kv_blocks:
        _turn(k, k_out, keys, page_rows, table, block - q_blocks, tokens, k_stride,
              KV_HEADS, D, R, ROWS, HALF, REST, INVERSE)  # fmt: skip
    else:
        if values is not None:
            row = (block - q_blocks - kv_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
            token, head, i = row // KV_HEADS, row % KV_HEADS, tl.arange(0, WHOLE)[None, :]
            mask = (token < tokens) & (i < D)
            x = tl.load(v + token * v_stride + head * D + i, mask=mask, other=0.0)
            slot = tl.load(page_rows + token, mask=token < tokens, other=0)
            tl.store(values + (slot * KV_HEADS + head) * D + i, x.to(values.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def _table_kernel(positions, frequencies, table, tokens,
                  HALF: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    """table[token] = the HALF cosines and then the HALF sines of float64 angles."""
    wait(EARLY)
    row, i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, COLS)[None, :]
    inside = (row < tokens) & (i < HALF)
    position = tl.load(positions + row, mask=row < tokens, other=0).to(tl.float64)
    angle = position * tl.load(frequencies + i, mask=i < HALF, other=0.0)
    tl.store(table + row * (2 * HALF) + i, tl.cos(angle).to(tl.float32), mask=inside)
    tl.store(table + row * (2 * HALF) + HALF + i, tl.sin(angle).to(tl.float32), mask=inside)


def rotary_table(positions: Tensor, rotary_dim: int, theta: float) -> Tensor:
    """Same as `reference.rotary_table`, in one launch."""
    positions, half = positions.contiguous(), rotary_dim // 2
    table = torch.empty(len(positions), rotary_dim, dtype=torch.float32, device=positions.device)
    cols = triton.next_power_of_2(half)
    rows = max(1, _ANGLES // cols)
    _table_kernel[(triton.cdiv(len(positions), rows),)](
        positions, _frequencies(rotary_dim, theta, positions.device), table, len(positions),
        HALF=half, ROWS=rows, COLS=cols, num_warps=_WARPS, **early(positions.device),
    )  # fmt: skip
    return table


@cache
def _frequencies(rotary_dim: int, theta: float, device: torch.device) -> Tensor:
    """float64 [rotary_dim / 2]."""
    with torch.inference_mode(False):  # the cached tensor has to serve training too
        return reference.frequencies(rotary_dim, theta, device)


def _launch(
    q: Tensor, k: Tensor, table: Tensor, v: Tensor | None = None, keys: Tensor | None = None,
    values: Tensor | None = None, rows: Tensor | None = None, *, inverse: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    (tokens, heads, d), kv_heads, r = q.shape, k.shape[1], table.shape[1]
    q, k = _rows_whole(q), _rows_whole(k)
    v = v if v is None else _rows_whole(v)
    q_out = torch.empty(tokens, heads, d, dtype=q.dtype, device=q.device)
    k_out = torch.empty(tokens, kv_heads, d, dtype=k.dtype, device=k.device)
    q_blocks, kv_blocks = triton.cdiv(tokens * heads, _ROWS), triton.cdiv(tokens * kv_heads, _ROWS)
    _rotary[(q_blocks + (1 if v is None else 2) * kv_blocks,)](
        q, k, v, q_out, k_out, keys, values, rows, table, tokens, q_blocks, kv_blocks,
        q.stride(0), k.stride(0), 0 if v is None else v.stride(0),
        HEADS=heads, KV_HEADS=kv_heads, D=d, R=r, ROWS=_ROWS, HALF=triton.next_power_of_2(r // 2),
        REST=triton.next_power_of_2(max(1, d - r)), WHOLE=triton.next_power_of_2(d), INVERSE=inverse,
        num_warps=_WARPS, **early(q.device),
    )  # fmt: skip
    return q_out, k_out


def _rows_whole(x: Tensor) -> Tensor:
    """x [T, heads, d], copied unless the heads of a token lie end to end (as they do in a slice of a projection)."""
    return x if x.stride(2) == 1 and (x.stride(1) == x.shape[2] or x.shape[1] == 1) else x.contiguous()


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(table)
        return _launch(q, k, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor, Tensor, None]:
        (table,) = ctx.saved_tensors
        return *_launch(grad_q, grad_k, table, inverse=True), None


def rotary(q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Same as `reference.rotary`."""
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        return _Rotary.apply(q, k, table)
    return _launch(q, k, table)


def rotary_to_pages(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, keys: Tensor, values: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Same as `reference.rotary_to_pages`, not differentiable; `keys` and `values` contiguous."""
    return _launch(q, k, table, v, keys, values, rows)
