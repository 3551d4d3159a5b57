"""The experts' MLPs for one token or a few: no sorting, every chosen expert's weights streamed at memory speed.

A matrix times one vector needs no tensor cores. Each program holds a few rows of partial products in registers and runs
through the depth in steps long enough to keep memory busy. Programs of different assignments but the same weight rows
start next to each other, so that an expert that two tokens share comes from memory once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from text_backbone.kernels.moe.configs import Gemv
from text_backbone.kernels.moe.operands import UNSCALED, Scales
from text_backbone.kernels.overlap import early, wait


@triton.jit
def _up_kernel(
    x, w13, scales, row_scales, experts, h,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, TOP_K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """h[assignment] = SiLU(w1 x) * w3 x for BN inner units. `scales` [E, 2, I] and `row_scales` [T] as in `grouped`."""
    wait(EARLY)
    assignment = tl.program_id(0)
    expert = tl.load(experts + assignment)
    unit = tl.program_id(1) * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    xs = x + (assignment // TOP_K).to(tl.int64) * HIDDEN + depth
    ws = w13 + expert * (2 * INNER * HIDDEN) + unit.to(tl.int64)[:, None] * HIDDEN + depth[None, :]
    a = tl.zeros([BN, BK], tl.float32)
    b = tl.zeros([BN, BK], tl.float32)
    for k in tl.range(0, HIDDEN, BK, num_stages=STAGES):
        deep = k + depth < HIDDEN
        inside = (unit < INNER)[:, None] & deep[None, :]
        left = tl.load(ws + k, mask=inside, other=0.0)
        right = tl.load(ws + k + INNER * HIDDEN, mask=inside, other=0.0)
        row = tl.load(xs + k, mask=deep, other=0.0).to(tl.float32)[None, :]
        a += left.to(tl.float32) * row
        b += right.to(tl.float32) * row
    gate, value = tl.sum(a, 1), tl.sum(b, 1)
    if scales is not None:
        ss = scales + expert * (2 * INNER) + unit
        gate *= tl.load(ss, mask=unit < INNER, other=0.0)
        value *= tl.load(ss + INNER, mask=unit < INNER, other=0.0)
    if row_scales is not None:
        scale = tl.load(row_scales + assignment // TOP_K)
        gate *= scale
        value *= scale
    out = gate * tl.sigmoid(gate) * value
    tl.store(h + assignment.to(tl.int64) * INNER + unit, out.to(h.dtype.element_ty), mask=unit < INNER)


@triton.jit
def _down_kernel(
    h, w2, scales, row_scales, weights, experts, out,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, TOP_K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """out[token] = sum over j of weights[token, j] w2 h[assignment j] for BN hidden units.

    `scales` [E, hidden] and `row_scales` [T * k] as in `grouped`.
    """
    wait(EARLY)
    token = tl.program_id(0)
    unit = tl.program_id(1) * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    total = tl.zeros([BN, BK], tl.float32)
    for j in tl.static_range(TOP_K):
        assignment = token * TOP_K + j
        expert, weight = tl.load(experts + assignment), tl.load(weights + assignment)
        if row_scales is not None:
            weight *= tl.load(row_scales + assignment)
        hs = h + assignment.to(tl.int64) * INNER + depth
        ws = w2 + expert * (HIDDEN * INNER) + unit.to(tl.int64)[:, None] * INNER + depth[None, :]
        part = total if scales is None else tl.zeros([BN, BK], tl.float32)
        for k in tl.range(0, INNER, BK, num_stages=STAGES):
            deep = k + depth < INNER
            some = tl.load(ws + k, mask=(unit < HIDDEN)[:, None] & deep[None, :], other=0.0)
            row = tl.load(hs + k, mask=deep, other=0.0).to(tl.float32) * weight
            part += some.to(tl.float32) * row[None, :]
        if scales is None:
            total = part
        else:
            total += part * tl.load(scales + expert * HIDDEN + unit, mask=unit < HIDDEN, other=0.0)[:, None]
    at = out + token.to(tl.int64) * HIDDEN + unit
    tl.store(at, tl.sum(total, 1).to(out.dtype.element_ty), mask=unit < HIDDEN)


def up(x: Tensor, w13: Tensor, experts: Tensor, tile: Gemv, scales: Scales = UNSCALED) -> Tensor:
    """h [T * k, I], in the order of `experts` [T, k], from x [T, hidden] and w13 [E, 2, I, hidden]."""
    _, _, inner, hidden = w13.shape
    h = x.new_empty(experts.numel(), inner, dtype=scales.out or x.dtype)
    depth = min(tile.k, triton.next_power_of_2(hidden))
    _up_kernel[experts.numel(), triton.cdiv(inner, tile.n)](
        x, w13, scales.weight, scales.x, experts, h, hidden, inner, experts.shape[1], tile.n, depth, tile.stages,
        num_warps=tile.warps, **early(x.device),
    )  # fmt: skip
    return h


def down(h: Tensor, w2: Tensor, weights: Tensor, experts: Tensor, tile: Gemv, scales: Scales = UNSCALED) -> Tensor:
    """[T, hidden]: the weighted sum of w2 h over every token's assignments."""
    _, hidden, inner = w2.shape
    out = h.new_empty(len(experts), hidden, dtype=scales.out or h.dtype)
    depth = min(tile.k, triton.next_power_of_2(inner))
    _down_kernel[len(experts), triton.cdiv(hidden, tile.n)](
        h, w2, scales.weight, scales.x, weights, experts, out, hidden, inner, experts.shape[1], tile.n, depth,
        tile.stages, num_warps=tile.warps, **early(h.device),
    )  # fmt: skip
    return out
