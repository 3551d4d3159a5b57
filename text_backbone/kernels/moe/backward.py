"""Gradients of the experts' gated MLPs.

For a token's gradient g and an assignment of weight w, with h = SiLU(a) * b, a = w1 x, b = w3 x, out += w * w2 h:

    u = w2^T g;  dw = <u, h>;  db = w u SiLU(a);  da = w u b SiLU'(a)
    dx += w1^T da + w3^T db;  dw13 = sum [da, db] x^T;  dw2 = sum g (w h)^T
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from text_backbone.kernels.moe.configs import Tile, fit, fit_inner, training_tile
from text_backbone.kernels.moe.grouped import find_expert, place_tile, precision, tiles_below
from text_backbone.kernels.moe.reduce import sum_partials
from text_backbone.kernels.moe.sort import Groups

_PROGRAMS = 264  # two for each of an H200's 132 multiprocessors


@triton.jit
def _dh_kernel(
    dout, w2, ab, weights, dab, wh, partial, order, bounds,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, TOP_K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dab[row] = (da, db), wh[row] = w h and this tile's part of dw, for BM rows and BN inner units."""
    ACROSS: tl.constexpr = (INNER + BN - 1) // BN
    expert, local = find_expert(bounds, tl.program_id(0), E, EP, BM, ACROSS)
    if expert >= E:
        return
    first, last = tl.load(bounds + expert), tl.load(bounds + expert + 1)
    m, n = place_tile(local, last - first, BM, ACROSS, GROUP)
    row = first + m * BM + tl.arange(0, BM)
    live = row < last
    assignment = tl.load(order + row, mask=live, other=0)
    column = n * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    gs = dout + (assignment // TOP_K).to(tl.int64)[:, None] * HIDDEN + depth[None, :]  # [BM, BK]
    ws = w2 + expert.to(tl.int64) * (INNER * HIDDEN) + depth.to(tl.int64)[:, None] * INNER + column[None, :]  # [BK, BN]
    u = tl.zeros([BM, BN], tl.float32)
    for k in range(0, HIDDEN, BK):
        deep = k + depth < HIDDEN
        grad = tl.load(gs + k, mask=deep[None, :], other=0.0)
        weight = tl.load(ws, mask=deep[:, None] & (column < INNER)[None, :], other=0.0)
        u = tl.dot(grad, weight, u, input_precision=PRECISION)
        ws += BK * INNER
    inside = live[:, None] & (column < INNER)[None, :]
    wide = row.to(tl.int64)[:, None] * INNER
    a = tl.load(ab + 2 * wide + column[None, :], mask=inside, other=0.0).to(tl.float32)
    b = tl.load(ab + 2 * wide + column[None, :] + INNER, mask=inside, other=0.0).to(tl.float32)
    gate = tl.sigmoid(a)
    h = a * gate * b
    tl.store(partial + row.to(tl.int64) * ACROSS + n, tl.sum(u * h, 1), mask=live)
    scale = tl.load(weights + assignment, mask=live, other=0.0)[:, None]
    u *= scale
    kind = dab.dtype.element_ty
    tl.store(wh + wide + column[None, :], (h * scale).to(kind), mask=inside)
    tl.store(dab + 2 * wide + column[None, :], (u * b * gate * (1 + a * (1 - gate))).to(kind), mask=inside)
    tl.store(dab + 2 * wide + column[None, :] + INNER, (u * a * gate).to(kind), mask=inside)


@triton.jit
def _dw_kernel(
    left, right, out, order, bounds,
    M: tl.constexpr, N: tl.constexpr, TOP_K: tl.constexpr, GATHER_LEFT: tl.constexpr, STRIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[split, e] = the sum over a split of expert e's rows of left[row]^T right[row], a tile of [M, N].

    One side is in sorted order, the other in the tokens' and gathered on load. STRIDE: elements between splits.
    """
    ACROSS: tl.constexpr = (N + BN - 1) // BN
    expert = tl.program_id(1)
    first, last = tl.load(bounds + expert), tl.load(bounds + expert + 1)
    span = tl.cdiv(tl.cdiv(last - first, tl.num_programs(2)), BK) * BK
    first += tl.program_id(2) * span
    last = tl.minimum(first + span, last)
    m = tl.program_id(0) // ACROSS * BM + tl.arange(0, BM)
    n = tl.program_id(0) % ACROSS * BN + tl.arange(0, BN)
    total = tl.zeros([BM, BN], tl.float32)
    for begin in range(first, last, BK):
        row = begin + tl.arange(0, BK)
        live = row < last
        token = (tl.load(order + row, mask=live, other=0) // TOP_K).to(tl.int64)
        of_left = token if GATHER_LEFT else row.to(tl.int64)
        of_right = row.to(tl.int64) if GATHER_LEFT else token
        ls = tl.load(left + of_left[:, None] * M + m[None, :], mask=live[:, None] & (m < M)[None, :], other=0.0)
        rs = tl.load(right + of_right[:, None] * N + n[None, :], mask=live[:, None] & (n < N)[None, :], other=0.0)
        total = tl.dot(tl.trans(ls), rs, total, input_precision=PRECISION)
    out += tl.program_id(2).to(tl.int64) * STRIDE + expert.to(tl.int64) * (M * N)
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


def dh(
    dout: Tensor, w2: Tensor, ab: Tensor, weights: Tensor, groups: Groups, tile: Tile
) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted dab [T * k, 2, I], weighted h [T * k, I] and the parts of dweights, float32 [T * k, parts]."""
    count, hidden, inner = w2.shape
    rows, top_k = len(ab), weights.shape[1]
    bn, bk = fit(inner, tile.n), fit_inner(hidden, tile.k)
    across = triton.cdiv(inner, bn)
    dab, wh = torch.empty_like(ab), ab.new_empty(rows, inner)
    partial = ab.new_empty(rows, across, dtype=torch.float32)
    _dh_kernel[(tiles_below(rows, count, tile.m) * across,)](
        dout, w2, ab, weights, dab, wh, partial, groups.order, groups.bounds,
        hidden, inner, count, max(2, triton.next_power_of_2(count)), top_k, tile.m, bn, bk, tile.group,
        precision(ab.dtype), num_warps=tile.warps, num_stages=tile.stages, maxnreg=tile.registers,
    )  # fmt: skip
    return dab, wh, partial


def weight_gradients(
    x: Tensor, dout: Tensor, dab: Tensor, wh: Tensor, groups: Groups, top_k: int
) -> tuple[Tensor, Tensor]:
    """dw13 [E, 2, I, hidden] and dw2 [E, hidden, I] from x and dout [T, hidden] and sorted dab and weighted h.

    Few experts with many rows would leave most of the GPU idle: the rows are split, and the parts summed in float32.
    """
    count, (rows, inner), hidden = len(groups.bounds) - 1, wh.shape, x.shape[1]
    tile = training_tile("dw", x.dtype)
    tiles = triton.cdiv(2 * inner, tile.m) * triton.cdiv(hidden, tile.n) * count
    splits = max(1, min(_PROGRAMS // tiles, rows // (count * 8 * tile.k)))
    sizes = [count * 2 * inner * hidden, count * hidden * inner]
    flat = x.new_empty(sum(sizes))  # both in one, so that one launch sums the parts of both
    parts = flat if splits == 1 else x.new_empty(splits, sum(sizes), dtype=torch.float32)
    pairs = ((dab, x, 2 * inner, hidden, False), (dout, wh, hidden, inner, True))
    for (left, right, m, n, gather_left), out in zip(pairs, parts.view(-1, sum(sizes)).split(sizes, 1), strict=True):
        bm, bn = fit(m, tile.m), fit(n, tile.n)
        _dw_kernel[triton.cdiv(m, bm) * triton.cdiv(n, bn), count, splits](
            left, right, out, groups.order, groups.bounds, m, n, top_k, gather_left, sum(sizes),
            bm, bn, tile.k, precision(x.dtype), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    if splits > 1:
        sum_partials(parts, flat)
    dw13, dw2 = flat.split(sizes)
    return dw13.view(count, 2, inner, hidden), dw2.view(count, hidden, inner)
