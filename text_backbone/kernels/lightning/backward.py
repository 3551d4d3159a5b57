"""Backward kernels of lightning attention: from the gradient of the output to that of the fused projection.

    dq_t = do_t S_t^T        dk_j = v_j R_j^T        dv_j = k_j R_j        R_j = exp(-s) R_{j+1} + q_j^T do_j

S runs forwards as it did for the output, R from the last token to the first. Both are walked chunk by chunk, and with
segments exactly as in the forward kernels; the states S before the segments are the forward's. The derivative of SiLU
is applied before a gradient is written, in the fused layout.
"""

from __future__ import annotations

import triton
import triton.language as tl

from text_backbone.kernels.lightning.forward import (
    causal_decay,
    load_rows,
    load_silu,
    operand,
    program_of,
    sigmoid,
    state_pointers,
)


@triton.jit
def reverse_gain_kernel(
    qkv, grad, cells, slopes, table,
    H: tl.constexpr, D: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """cells [., H, D, D] at a segment's cell: R at the segment's first token had it been zero after the segment."""
    block, head, start, length, _, cell, _ = program_of(table, H, D // BV)
    rate = tl.load(slopes + head)
    rows = tl.arange(0, C)
    chunks = tl.cdiv(length, C)
    final = start + (chunks - 1) * C
    x = qkv + final * (3 * H * D) + head * (3 * D)
    y = grad + final * (H * D) + head * D + block * BV
    q_at = rows[:, None] * (3 * H * D) + tl.arange(0, D)[None, :]
    do_at = rows[:, None] * (H * D) + tl.arange(0, BV)[None, :]
    since = tl.exp(-rate * rows)[:, None]
    gain = tl.zeros((D, BV), tl.float32)
    for i in tl.range(0, chunks, num_stages=STAGES):
        filled = tl.minimum(length - (chunks - 1 - i) * C, C)
        q = operand(load_silu(x + q_at, rows, filled, FAST) * since, OPERAND, PRECISION)
        do = operand(load_rows(y + do_at, rows, filled), OPERAND, PRECISION)
        gain = tl.dot(tl.trans(q), do, gain * tl.exp(-rate * filled), input_precision=PRECISION)
        x -= C * 3 * H * D
        y -= C * H * D
    tl.store(state_pointers(cells, block, cell, head, H, D, BV), gain)


@triton.jit
def store_gradient(pointers, gradient, x, rows, filled, FAST: tl.constexpr):
    """Through SiLU of x [C, d]: silu'(x) = sigmoid(x) (1 + x (1 - sigmoid(x)))."""
    gate = sigmoid(x, FAST)
    gradient *= gate * (1.0 + x * (1.0 - gate))
    tl.store(pointers, gradient.to(pointers.dtype.element_ty), mask=(rows < filled)[:, None])


@triton.jit
def walk_forwards(
    state, qkv, grad, dqkv, rate, head, start, length,
    H: tl.constexpr, D: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write dq of a segment from `state` [D, D], the transpose of S before it."""
    rows = tl.arange(0, C)
    offset = start * (3 * H * D) + head * (3 * D)
    y = grad + start * (H * D) + head * D
    x_at = rows[:, None] * (3 * H * D) + tl.arange(0, D)[None, :]
    do_at = rows[:, None] * (H * D) + tl.arange(0, D)[None, :]
    decay = causal_decay(rate, C)
    since = tl.exp(-rate * (rows + 1))[:, None]
    for first in tl.range(0, length, C, num_stages=STAGES):
        filled = tl.minimum(length - first, C)
        x = load_rows(qkv + offset + x_at, rows, filled)
        k = operand(load_silu(qkv + offset + D + x_at, rows, filled, FAST), OPERAND, PRECISION)
        v = load_silu(qkv + offset + 2 * D + x_at, rows, filled, FAST)
        do = operand(load_rows(y + do_at, rows, filled), OPERAND, PRECISION)
        scores = tl.dot(do, tl.trans(operand(v, OPERAND, PRECISION)), input_precision=PRECISION) * decay
        dq = tl.dot(do, operand(state, OPERAND, PRECISION), input_precision=PRECISION) * since
        dq = tl.dot(operand(scores, OPERAND, PRECISION), k, dq, input_precision=PRECISION)
        left = tl.maximum(filled - 1 - rows, 0)
        v = operand(v * tl.exp(-rate * left)[:, None], OPERAND, PRECISION)
        state = tl.dot(tl.trans(v), k, state * tl.exp(-rate * filled), input_precision=PRECISION)
        store_gradient(dqkv + offset + x_at, dq, x, rows, filled, FAST)
        offset += C * 3 * H * D
        y += C * H * D


@triton.jit
def walk_backwards(
    state, qkv, grad, dqkv, rate, head, start, length,
    H: tl.constexpr, D: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write dk and dv of a segment, last chunk first, from `state` [D, D], R after it."""
    rows = tl.arange(0, C)
    chunks = tl.cdiv(length, C)
    final = start + (chunks - 1) * C
    offset = final * (3 * H * D) + head * (3 * D)
    y = grad + final * (H * D) + head * D
    x_at = rows[:, None] * (3 * H * D) + tl.arange(0, D)[None, :]
    do_at = rows[:, None] * (H * D) + tl.arange(0, D)[None, :]
    decay = tl.trans(causal_decay(rate, C))
    before = tl.exp(-rate * rows)[:, None]
    for i in tl.range(0, chunks, num_stages=STAGES):
        filled = tl.minimum(length - (chunks - 1 - i) * C, C)
        q = load_silu(qkv + offset + x_at, rows, filled, FAST)
        x_k = load_rows(qkv + offset + D + x_at, rows, filled)
        x_v = load_rows(qkv + offset + 2 * D + x_at, rows, filled)
        do = operand(load_rows(y + do_at, rows, filled), OPERAND, PRECISION)
        k = operand(x_k * sigmoid(x_k, FAST), OPERAND, PRECISION)
        v = operand(x_v * sigmoid(x_v, FAST), OPERAND, PRECISION)
        q_plain = operand(q, OPERAND, PRECISION)
        wide = operand(state, OPERAND, PRECISION)
        until = tl.exp(-rate * tl.maximum(filled - rows, 0))[:, None]
        scores = tl.dot(k, tl.trans(q_plain), input_precision=PRECISION) * decay  # [of key j, of query t]
        dv = tl.dot(k, wide, input_precision=PRECISION) * until
        dv = tl.dot(operand(scores, OPERAND, PRECISION), do, dv, input_precision=PRECISION)
        store_gradient(dqkv + offset + 2 * D + x_at, dv, x_v, rows, filled, FAST)
        scores = tl.dot(v, tl.trans(do), input_precision=PRECISION) * decay
        dk = tl.dot(v, tl.trans(wide), input_precision=PRECISION) * until
        dk = tl.dot(operand(scores, OPERAND, PRECISION), q_plain, dk, input_precision=PRECISION)
        store_gradient(dqkv + offset + D + x_at, dk, x_k, rows, filled, FAST)
        q = operand(q * before, OPERAND, PRECISION)
        state = tl.dot(tl.trans(q), do, state * tl.exp(-rate * filled), input_precision=PRECISION)
        offset -= C * 3 * H * D
        y -= C * H * D


@triton.jit
def walk_back_kernel(
    qkv, grad, dqkv, before, after, slopes, table,
    H: tl.constexpr, D: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dqkv [T, 3 * H * D]: one program in two writes dq of a segment and head, the other dk and dv.

    before, after: [., H, D, D], S before and R after each segment that has a cell; the others start from zero.
    """
    backwards, head, start, length, _, cell, _ = program_of(table, H, 2)
    rate = tl.load(slopes + head)
    state = tl.zeros((D, D), tl.float32)
    if backwards != 0:
        if after is not None:  # noqa: SIM102 (known when compiling)
            if cell >= 0:
                state = tl.load(state_pointers(after, 0, cell, head, H, D, D))
        walk_backwards(
            state, qkv, grad, dqkv, rate, head, start, length, H, D, C, FAST, OPERAND, PRECISION, STAGES
        )  # fmt: skip
    else:
        if before is not None:  # noqa: SIM102
            if cell >= 0:
                state = tl.load(state_pointers(before, 0, cell, head, H, D, D))
        walk_forwards(
            tl.trans(state), qkv, grad, dqkv, rate, head, start, length, H, D, C, FAST, OPERAND, PRECISION, STAGES
        )  # fmt: skip
