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

from text_backbone.kernels.moe.configs import Tile, fit, fit_inner
from text_backbone.kernels.moe.grouped import find_expert, place_tile, precision, tiles_below
from text_backbone.kernels.moe.operands import reachable, streamed
from text_backbone.kernels.moe.reduce import sum_partials
from text_backbone.kernels.moe.sort import Groups

_PROGRAMS = 264  # two for each of an H200's 132 multiprocessors


@triton.jit
def _dh_part(u, ab, dab, wh, partial, row, column, scale, live, INNER: tl.constexpr):
    """From u of some rows and inner units: (da, db), w h, and the rows' sums of u h."""
    inside = live[:, None] & (column < INNER)[None, :]
    wide = row.to(tl.int64)[:, None] * INNER
    a = tl.load(ab + 2 * wide + column[None, :], mask=inside, other=0.0).to(tl.float32)
    b = tl.load(ab + 2 * wide + column[None, :] + INNER, mask=inside, other=0.0).to(tl.float32)
    gate = tl.sigmoid(a)
    h = a * gate * b
    tl.store(partial, tl.sum(u * h, 1), mask=live)
    u *= scale[:, None]
    kind = dab.dtype.element_ty
    tl.store(wh + wide + column[None, :], (h * scale[:, None]).to(kind), mask=inside)
    tl.store(dab + 2 * wide + column[None, :], (u * b * gate * (1 + a * (1 - gate))).to(kind), mask=inside)
    tl.store(dab + 2 * wide + column[None, :] + INNER, (u * a * gate).to(kind), mask=inside)


@triton.jit
def _dh_kernel(
    dout, w2, ab, weights, dab, wh, partial, order, bounds,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, TOP_K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dab[row] = (da, db), wh[row] = w h and this tile's two parts of dw, for BM rows and BN inner units.

    What follows the product takes one half of the units after the other, for which there are registers.
    """
    ACROSS: tl.constexpr = (INNER + BN - 1) // BN
    HALF: tl.constexpr = BN // 2
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
    if not TMA:
        ws = w2 + expert.to(tl.int64) * (INNER * HIDDEN)
        ws += depth.to(tl.int64)[:, None] * INNER + column[None, :]  # [BK, BN]
    u = tl.zeros([BM, BN], tl.float32)
    for k in range(0, HIDDEN, BK):
        deep = k + depth < HIDDEN
        grad = tl.load(gs + k, mask=live[:, None] & deep[None, :], other=0.0)
        if TMA:
            weight = w2.load([expert, k, n * BN]).reshape(BK, BN)
        else:
            weight = tl.load(ws, mask=deep[:, None] & (column < INNER)[None, :], other=0.0)
            ws += BK * INNER
        u = tl.dot(grad, weight, u, input_precision=PRECISION)
    left, right = tl.split(tl.permute(tl.reshape(u, [BM, 2, HALF]), [0, 2, 1]))
    scale = tl.load(weights + assignment, mask=live, other=0.0)
    sums = partial + row.to(tl.int64) * (2 * ACROSS) + 2 * n
    column = n * BN + tl.arange(0, HALF)
    _dh_part(left, ab, dab, wh, sums, row, column, scale, live, INNER)
    _dh_part(right, ab, dab, wh, sums + 1, row, column + HALF, scale, live, INNER)


@triton.jit
def _spread_kernel(
    x, out, order, bounds,
    WIDTH: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, TOP_K: tl.constexpr, GAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[row + expert * GAP] = x[token of the sorted row]; the GAP rows after each expert's are zero."""
    at = tl.program_id(0)
    bins = tl.arange(0, EP)
    starts = tl.load(bounds + bins, mask=bins < E, other=1 << 30) + bins * GAP
    expert = tl.sum((starts <= at).to(tl.int32), 0) - 1
    row = at - expert * GAP
    live = row < tl.load(bounds + expert + 1)
    token = (tl.load(order + row, mask=live, other=0) // TOP_K).to(tl.int64)
    for first in range(0, WIDTH, BLOCK):
        unit = first + tl.arange(0, BLOCK)
        some = tl.load(x + token * WIDTH + unit, mask=live & (unit < WIDTH), other=0.0)
        tl.store(out + at.to(tl.int64) * WIDTH + unit, some, mask=unit < WIDTH)


@triton.jit
def _dw_kernel(
    left, right, out, order, bounds,
    M: tl.constexpr, N: tl.constexpr, TOP_K: tl.constexpr, GATHER_LEFT: tl.constexpr, STRIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[split, e] = the sum over a split of expert e's rows of left[row]^T right[row], a tile of [M, N].

    One side is in sorted order, the other in the tokens' and gathered on load. With TMA the other side is in sorted
    order too, with BK rows of zeros after each expert's, which take the rows past an expert's last out of the sum.
    STRIDE: elements between splits.
    """
    ACROSS: tl.constexpr = (N + BN - 1) // BN
    expert = tl.program_id(1)
    first, last = tl.load(bounds + expert), tl.load(bounds + expert + 1)
    span = tl.cdiv(tl.cdiv(last - first, tl.num_programs(2)), BK) * BK
    first += tl.program_id(2) * span
    last = tl.minimum(first + span, last)
    top, begin_n = tl.program_id(0) // ACROSS * BM, tl.program_id(0) % ACROSS * BN
    m, n = top + tl.arange(0, BM), begin_n + tl.arange(0, BN)
    total = tl.zeros([BM, BN], tl.float32)
    for begin in range(first, last, BK):
        if TMA:
            spread = begin + expert * BK
            ls = left.load([spread if GATHER_LEFT else begin, top])
            rs = right.load([begin if GATHER_LEFT else spread, begin_n])
        else:
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
    partial = ab.new_empty(rows, 2 * across, dtype=torch.float32)
    tma = tile.tma and reachable(w2)
    _dh_kernel[(tiles_below(rows, count, tile.m) * across,)](
        dout, streamed(w2, [1, bk, bn]) if tma else w2, ab, weights, dab, wh, partial, groups.order, groups.bounds,
        hidden, inner, count, max(2, triton.next_power_of_2(count)), top_k, tile.m, bn, bk, tile.group, tma,
        precision(ab.dtype), num_warps=tile.warps, num_stages=tile.stages, maxnreg=tile.registers,
    )  # fmt: skip
    return dab, wh, partial


def weight_gradients(
    x: Tensor, dout: Tensor, dab: Tensor, wh: Tensor, groups: Groups, top_k: int, tile: Tile
) -> tuple[Tensor, Tensor]:
    """dw13 [E, 2, I, hidden] and dw2 [E, hidden, I] from x and dout [T, hidden] and sorted dab and weighted h.

    Few experts with many rows would leave most of the GPU idle: the rows are split, and the parts summed in float32.
    """
    count, (rows, inner), hidden = len(groups.bounds) - 1, wh.shape, x.shape[1]
    dab = dab.flatten(1)
    tiles = triton.cdiv(2 * inner, tile.m) * triton.cdiv(hidden, tile.n) * count
    splits = max(1, min(_PROGRAMS // tiles, rows // (count * 8 * tile.k)))
    sizes = [count * 2 * inner * hidden, count * hidden * inner]
    flat = x.new_empty(sum(sizes))  # both in one, so that one launch sums the parts of both
    parts = flat if splits == 1 else x.new_empty(splits, sum(sizes), dtype=torch.float32)
    tma = tile.tma and all(reachable(t) for t in (x, dout, dab, wh))
    if tma:
        x, dout = (_spread(t, groups, top_k, tile.k) for t in (x, dout))
    pairs = ((dab, x, 2 * inner, hidden, False), (dout, wh, hidden, inner, True))
    for (left, right, m, n, gather_left), out in zip(pairs, parts.view(-1, sum(sizes)).split(sizes, 1), strict=True):
        bm, bn = fit(m, tile.m), fit(n, tile.n)
        _dw_kernel[triton.cdiv(m, bm) * triton.cdiv(n, bn), count, splits](
            *((streamed(left, [tile.k, bm]), streamed(right, [tile.k, bn])) if tma else (left, right)),
            out, groups.order, groups.bounds, m, n, top_k, gather_left, sum(sizes),
            bm, bn, tile.k, tma, precision(wh.dtype), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    if splits > 1:
        sum_partials(parts, flat)
    dw13, dw2 = flat.split(sizes)
    return dw13.view(count, 2, inner, hidden), dw2.view(count, hidden, inner)


def _spread(x: Tensor, groups: Groups, top_k: int, gap: int) -> Tensor:
    """x [T, width] in sorted order, with `gap` rows of zeros after each expert's: [T * k + E * gap, width]."""
    count, width = len(groups.bounds) - 1, x.shape[1]
    out = x.new_empty(len(groups.order) + count * gap, width)
    _spread_kernel[(len(out),)](
        x, out, groups.order, groups.bounds, width, count, max(2, triton.next_power_of_2(count)), top_k, gap,
        min(2048, triton.next_power_of_2(width)), num_warps=4,
    )  # fmt: skip
    return out
