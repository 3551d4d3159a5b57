"""The three norms as one pass over memory each way; see `reference.py` for what they compute.

A row is read once, held in registers in float32, and written once. The backward keeps only the inputs and one
1/rms per row, and recomputes the rest. Its programs are as many as the GPU runs at a time: each walks over many rows
and holds its share of the weight gradient, so that the gradient costs one small sum and no atomics.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from text_backbone.kernels.device import multiprocessors
from text_backbone.kernels.norms.reference import tail_columns
from text_backbone.kernels.overlap import early, wait

PLAIN, RESIDUAL, GATED = 0, 1, 2
_RESIDUAL, _GATED = tl.constexpr(RESIDUAL), tl.constexpr(GATED)

# elements of a tile (narrow rows share one) and elements per thread
_FORWARD_TILE, _FORWARD_PER_THREAD = 4096, 32
_BACKWARD_TILE, _BACKWARD_PER_THREAD = 2048, 16
_PROGRAMS_PER_SM = 4
_SUM_ROWS, _SUM_COLS = 64, 32


@triton.jit(do_not_specialize=["rows"])
def _forward(x, y, weight, out, inverse_rms, rows, alpha, beta, eps,
             N: tl.constexpr, COLS: tl.constexpr, ROWS: tl.constexpr, KIND: tl.constexpr,
             SAVE: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    wait(EARLY)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    inside = (row < rows)[:, None] & (col < N)[None, :]
    at = row[:, None] * N + col[None, :]
    total = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)  # [ROWS, COLS]
    if KIND == _RESIDUAL:
        total = alpha * total + beta * tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(total * total, axis=1) / N + eps)
    scale = tl.load(weight + col, mask=col < N, other=0.0).to(tl.float32)[None, :]
    if KIND == _GATED:
        scale = scale * tl.sigmoid(tl.load(y + at, mask=inside, other=0.0).to(tl.float32))
    tl.store(out + at, (total * inverse[:, None] * scale).to(out.dtype.element_ty), mask=inside)
    if SAVE:
        tl.store(inverse_rms + row, inverse, mask=row < rows)


@triton.jit(do_not_specialize=["rows"])
def _backward(grad, x, y, weight, inverse_rms, grad_x, grad_y, partial, rows, alpha, beta,
              N: tl.constexpr, COLS: tl.constexpr, ROWS: tl.constexpr, KIND: tl.constexpr,
              WEIGHT: tl.constexpr):  # fmt: skip
    """Gradients of x and y, and this program's share of the weight's in row `program` of `partial` [programs, N]."""
    col = tl.arange(0, COLS)
    scale = tl.load(weight + col, mask=col < N, other=0.0).to(tl.float32)[None, :]
    share = tl.zeros([ROWS, COLS], tl.float32)
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS).to(tl.int64)
        inside = (row < rows)[:, None] & (col < N)[None, :]
        at = row[:, None] * N + col[None, :]
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        normed = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.load(inverse_rms + row, mask=row < rows, other=0.0)[:, None]
        if KIND == _RESIDUAL:
            normed = alpha * normed + beta * tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        normed = normed * inverse
        if KIND == _GATED:
            gate = tl.sigmoid(tl.load(y + at, mask=inside, other=0.0).to(tl.float32))
            grad_gate = g * normed * scale * gate * (1 - gate)
            tl.store(grad_y + at, grad_gate.to(grad_y.dtype.element_ty), mask=inside)
            g = g * gate
        if WEIGHT:
            share += g * normed
        g = g * scale
        along = tl.sum(g * normed, axis=1)[:, None] / N
        grad_sum = (g - normed * along) * inverse
        if KIND == _RESIDUAL:
            tl.store(grad_y + at, (beta * grad_sum).to(grad_y.dtype.element_ty), mask=inside)
            grad_sum = alpha * grad_sum
        tl.store(grad_x + at, grad_sum.to(grad_x.dtype.element_ty), mask=inside)
    if WEIGHT:
        tl.store(partial + tl.program_id(0).to(tl.int64) * N + col, tl.sum(share, axis=0), mask=col < N)


@triton.jit(do_not_specialize=["programs"])
def _sum_shares(partial, grad_weight, programs, N: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    total = tl.zeros([ROWS, COLS], tl.float32)
    for first in range(0, programs, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < programs)[:, None] & (col < N)[None, :]
        total += tl.load(partial + row[:, None] * N + col[None, :], mask=inside, other=0.0)
    tl.store(grad_weight + col, tl.sum(total, axis=0).to(grad_weight.dtype.element_ty), mask=col < N)


@triton.jit(do_not_specialize=["rows"])
def _gated_part(x, gate, weight, out, message, rows,
                N: tl.constexpr, COLS: tl.constexpr, ROWS: tl.constexpr, RANK: tl.constexpr, ROOM: tl.constexpr,
                TAIL: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    wait(EARLY)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    inside = (row < rows)[:, None] & (col < N)[None, :]
    at = row[:, None] * N + col[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)  # [ROWS, COLS]
    scale = tl.load(weight + col, mask=col < N, other=0.0).to(tl.float32)[None, :]
    scale = scale * tl.sigmoid(tl.load(gate + at, mask=inside, other=0.0).to(tl.float32))
    tl.store(out + at, (values * scale).to(out.dtype.element_ty), mask=inside)
    squares = tl.sum(values * values, axis=1)[:, None]
    near = squares.to(message.dtype.element_ty).to(tl.float32)
    col = tl.arange(0, TAIL)[None, :]
    pieces = tl.where(col == 2 * RANK, near, tl.where(col == 2 * RANK + 1, squares - near, 0.0))
    at = row[:, None] * (ROOM + TAIL) + ROOM + col
    tl.store(message + at, pieces.to(message.dtype.element_ty), mask=(row < rows)[:, None])


@triton.jit(do_not_specialize=["rows"])
def _divided(message, out, rows, width, eps,
             N: tl.constexpr, COLS: tl.constexpr, ROWS: tl.constexpr, TAIL: tl.constexpr,
             EARLY: tl.constexpr):  # fmt: skip
    wait(EARLY)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col, behind = tl.arange(0, COLS), tl.arange(0, TAIL)
    inside = (row < rows)[:, None] & (col < N)[None, :]
    start = row[:, None] * (N + TAIL)
    pieces = tl.load(message + start + N + behind[None, :], mask=(row < rows)[:, None], other=0.0)
    inverse = tl.rsqrt(tl.sum(pieces.to(tl.float32), axis=1) / width + eps)
    values = tl.load(message + start + col[None, :], mask=inside, other=0.0).to(tl.float32)
    at = row[:, None] * N + col[None, :]
    tl.store(out + at, (values * inverse[:, None]).to(out.dtype.element_ty), mask=inside)


@cache
def _shape(hidden: int, tile: int, per_thread: int) -> tuple[int, int, int]:
    """Columns (a power of two), rows and warps of a program's tile."""
    cols = triton.next_power_of_2(hidden)
    rows = max(1, tile // cols)
    return cols, rows, min(16, max(1, cols * rows // (32 * per_thread)))


def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return 2  # the interpreter: enough to have a sum
    return _PROGRAMS_PER_SM * multiprocessors(device)


def _run(
    x: Tensor, y: Tensor, weight: Tensor, alpha: float, beta: float, eps: float, kind: int, save: bool
) -> tuple[Tensor, Tensor | None]:
    """The normed rows and, with `save`, float32 1/rms of each; `x` and `y` contiguous."""
    hidden = weight.numel()
    rows = x.numel() // hidden
    out = torch.empty_like(x)
    inverse_rms = torch.empty(rows, dtype=torch.float32, device=x.device) if save else None
    if rows:
        cols, tile_rows, warps = _shape(hidden, _FORWARD_TILE, _FORWARD_PER_THREAD)
        _forward[(triton.cdiv(rows, tile_rows),)](
            x, y, weight, out, inverse_rms, rows, alpha, beta, eps,
            N=hidden, COLS=cols, ROWS=tile_rows, KIND=kind, SAVE=save, num_warps=warps, **early(x.device),
        )  # fmt: skip
    return out, inverse_rms


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor | None, weight: Tensor, alpha: float, beta: float, eps: float, kind: int
    ) -> Tensor:
        other = x if y is None else y
        out, inverse_rms = _run(x, other, weight, alpha, beta, eps, kind, save=True)
        ctx.save_for_backward(x, other, weight, inverse_rms)
        ctx.alpha, ctx.beta, ctx.kind = alpha, beta, kind
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, inverse_rms = ctx.saved_tensors
        kind, hidden, rows = ctx.kind, weight.numel(), inverse_rms.numel()
        wants_weight = ctx.needs_input_grad[2]
        grad_x, grad_y = torch.empty_like(x), None if kind == PLAIN else torch.empty_like(y)
        cols, tile_rows, warps = _shape(hidden, _BACKWARD_TILE, _BACKWARD_PER_THREAD)
        programs = min(triton.cdiv(rows, tile_rows), _programs(x.device))
        partial = torch.empty(programs, hidden, dtype=torch.float32, device=x.device) if wants_weight else None
        if rows:
            _backward[(programs,)](
                grad.contiguous(), x, y, weight, inverse_rms, grad_x, grad_y, partial, rows, ctx.alpha, ctx.beta,
                N=hidden, COLS=cols, ROWS=tile_rows, KIND=kind, WEIGHT=wants_weight, num_warps=warps,
            )  # fmt: skip
        grad_weight = None
        if partial is not None:
            grad_weight = torch.empty_like(weight)
            _sum_shares[(triton.cdiv(hidden, _SUM_COLS),)](
                partial, grad_weight, programs, N=hidden, ROWS=_SUM_ROWS, COLS=_SUM_COLS
            )
        return grad_x, grad_y, grad_weight, None, None, None, None


def _norm(x: Tensor, y: Tensor | None, weight: Tensor, alpha: float, beta: float, eps: float, kind: int) -> Tensor:
    x, y = x.contiguous(), None if y is None else y.contiguous()
    inputs = (x, weight) if y is None else (x, y, weight)
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        return _Norm.apply(x, y, weight, alpha, beta, eps, kind)
    return _run(x, x if y is None else y, weight, alpha, beta, eps, kind, save=False)[0]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Same as `reference.rms_norm`, `weight` of at most 16384 elements."""
    return _norm(x, None, weight, 1.0, 0.0, eps, PLAIN)


def residual_norm(x: Tensor, y: Tensor, alpha: float, beta: float, weight: Tensor, eps: float) -> Tensor:
    """Same as `reference.residual_norm`, `weight` of at most 16384 elements."""
    return _norm(x, y, weight, alpha, beta, eps, RESIDUAL)


def gated_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Same as `reference.gated_norm`, `weight` of at most 16384 elements."""
    return _norm(x, gate, weight, 1.0, 0.0, eps, GATED)


def gated_part(x: Tensor, gate: Tensor, weight: Tensor, rank: int, ranks: int, room: int = 0) -> tuple[Tensor, Tensor]:
    """Same as `reference.gated_part`, `weight` of at most 16384 elements. Without gradients."""
    x, gate = x.contiguous(), gate.contiguous()
    (rows, hidden), columns = x.shape, tail_columns(ranks)
    out, message = torch.empty_like(x), x.new_empty(rows, room + columns)
    if rows:
        cols, tile_rows, warps = _shape(hidden, _FORWARD_TILE, _FORWARD_PER_THREAD)
        _gated_part[(triton.cdiv(rows, tile_rows),)](
            x, gate, weight, out, message, rows,
            N=hidden, COLS=cols, ROWS=tile_rows, RANK=rank, ROOM=room, TAIL=columns, num_warps=warps, **early(x.device),
        )  # fmt: skip
    return out, message


def divided(message: Tensor, tail: int, width: int, eps: float) -> Tensor:
    """Same as `reference.divided`, of at most 16384 columns. Without gradients."""
    message, rows, hidden = message.contiguous(), len(message), message.shape[1] - tail
    out = message.new_empty(rows, hidden)
    if rows:
        cols, tile_rows, warps = _shape(hidden, _FORWARD_TILE, _FORWARD_PER_THREAD)
        _divided[(triton.cdiv(rows, tile_rows),)](
            message, out, rows, width, eps,
            N=hidden, COLS=cols, ROWS=tile_rows, TAIL=tail, num_warps=warps, **early(message.device),
        )  # fmt: skip
    return out
