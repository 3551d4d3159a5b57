"""Matrix products of the rows of every expert with that expert's weights, for sorted assignments (see `sort.Groups`).

No program knows on the host how many rows an expert has: as many programs start as there can be tiles, each finds its
tile from the device's `bounds`, and those past the last tile leave at once. Tiles of one expert run next to each other,
those that share weights first, so that the weights come from memory once and from the L2 cache afterwards.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from text_backbone.kernels.device import float32_precision
from text_backbone.kernels.moe.configs import Tile, fit, fit_inner
from text_backbone.kernels.moe.operands import UNSCALED, Scales, converted, readable, scaled
from text_backbone.kernels.moe.sort import Groups
from text_backbone.kernels.overlap import early, wait


@triton.jit
def find_expert(bounds, tile, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, ACROSS: tl.constexpr):
    """The expert of a tile (E or more: there is no such tile) and the tile's number among the expert's.

    An expert of n rows has ceil(n / BM) * ACROSS tiles.
    """
    bins = tl.arange(0, EP)
    first = tl.load(bounds + bins, mask=bins < E, other=0)
    last = tl.load(bounds + bins + 1, mask=bins < E, other=0)
    tiles = (last - first + (BM - 1)) // BM * ACROSS
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    return expert, tile - tl.sum(tl.where(bins < expert, tiles, 0), 0)


@triton.jit
def place_tile(local, rows, BM: tl.constexpr, ACROSS: tl.constexpr, GROUP: tl.constexpr):
    """Row and column of an expert's tile: tiles of up to GROUP rows, equal shares, take a column one after another.

    Their inputs stay in L2, and the weights come from memory once per group.
    """
    down = tl.cdiv(rows, BM)
    share = tl.cdiv(down, tl.cdiv(down, GROUP))
    leader = local // (share * ACROSS) * share
    height = tl.minimum(down - leader, share)
    rest = local % (share * ACROSS)
    return leader + rest % height, rest // height


@triton.jit
def _up_tile(
    x, w13, scales, row_scales, h, ab, order, expert, top, last, n,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, TOP_K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    SAVE: tl.constexpr, SWAP: tl.constexpr, TMA: tl.constexpr, PACK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = BN // 2
    row = top + tl.arange(0, BM)
    live = row < last
    token = (tl.load(order + row, mask=live, other=0) // TOP_K).to(tl.int64)
    depth = tl.arange(0, BK)
    xs = x + token[:, None] * HIDDEN + depth[None, :]  # [BM, BK]
    if not TMA:
        pair = tl.arange(0, BN)
        unit = n * HALF + pair % HALF
        if INNER % HALF != 0:
            unit = tl.minimum(unit, INNER - 1)
        ws = w13 + expert.to(tl.int64) * (2 * INNER * HIDDEN)
        ws += (unit + pair // HALF * INNER).to(tl.int64)[:, None] * HIDDEN + depth[None, :]  # [BN, BK]
    total = tl.zeros([BN, BM], tl.float32) if SWAP else tl.zeros([BM, BN], tl.float32)
    for k in range(0, HIDDEN, BK):
        deep = (k + depth < HIDDEN)[None, :]
        rows = tl.load(xs + k, mask=live[:, None] & deep, other=0.0)
        if TMA:
            some = w13.load([expert * 2, n * HALF, k // PACK]).reshape(BN, BK // PACK)
        elif HIDDEN % BK == 0:
            some = tl.load(ws + k)
        else:
            some = tl.load(ws + k, mask=deep, other=0.0)
        some = converted(some, rows.dtype)
        if SWAP:
            total = tl.dot(some, tl.trans(rows), total, input_precision=PRECISION)
        else:
            total = tl.dot(rows, tl.trans(some), total, input_precision=PRECISION)
    if SWAP:
        total = tl.trans(total)
    a, b = tl.split(tl.permute(tl.reshape(total, [BM, 2, HALF]), [0, 2, 1]))
    column = n * HALF + tl.arange(0, HALF)
    if scales is not None:
        scales += expert.to(tl.int64) * (2 * INNER)
        a = scaled(a, scales, column, INNER, row_scales, token, live)
        b = scaled(b, scales + INNER, column, INNER, row_scales, token, live)
    inside = live[:, None] & (column < INNER)[None, :]
    at = row.to(tl.int64)[:, None] * INNER + column[None, :]
    tl.store(h + at, (a * tl.sigmoid(a) * b).to(h.dtype.element_ty), mask=inside)
    if SAVE:
        at += row.to(tl.int64)[:, None] * INNER
        tl.store(ab + at, a.to(h.dtype.element_ty), mask=inside)
        tl.store(ab + at + INNER, b.to(h.dtype.element_ty), mask=inside)


@triton.jit
def _up_kernel(
    x, w13, scales, row_scales, h, ab, order, bounds,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, TOP_K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, SHORT: tl.constexpr,
    SAVE: tl.constexpr, SWAP: tl.constexpr, TMA: tl.constexpr, PACK: tl.constexpr, PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """h[row] = SiLU(w1 x) * w3 x for BM rows and BN / 2 inner units; with SAVE also ab[row] = (w1 x, w3 x).

    The BN weight rows of one product are BN / 2 of w1 and the same BN / 2 of w3. SWAP multiplies weights by rows
    instead of rows by weights: tensor cores take at least 64 rows on the left but as few as 8 columns on the right, so
    that few tokens waste little. SHORT: an expert's last tile is of half the rows if that is enough. `scales` [E, 2, I]
    and `row_scales` [T] multiply the products of codes. PACK: see `converted`.
    """
    wait(EARLY)
    ACROSS: tl.constexpr = (2 * INNER + BN - 1) // BN
    expert, local = find_expert(bounds, tl.program_id(0), E, EP, BM, ACROSS)
    if expert >= E:
        return
    first, last = tl.load(bounds + expert), tl.load(bounds + expert + 1)
    m, n = place_tile(local, last - first, BM, ACROSS, GROUP)
    top = first + m * BM
    if SHORT and last - top <= BM // 2:
        _up_tile(
            x, w13, scales, row_scales, h, ab, order, expert, top, last, n,
            HIDDEN, INNER, TOP_K, BM // 2, BN, BK, SAVE, SWAP, TMA, PACK, PRECISION,
        )  # fmt: skip
    else:
        _up_tile(
            x, w13, scales, row_scales, h, ab, order, expert, top, last, n,
            HIDDEN, INNER, TOP_K, BM, BN, BK, SAVE, SWAP, TMA, PACK, PRECISION,
        )  # fmt: skip


@triton.jit
def linear_tile(
    x, weight, scales, row_scales, y, expert, top, last, n,
    K: tl.constexpr, N: tl.constexpr, TRANSPOSED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    SWAP: tl.constexpr, TMA: tl.constexpr, PACK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = top + tl.arange(0, BM)
    live = row < last
    column = n * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    xs = x + row.to(tl.int64)[:, None] * K + depth[None, :]  # [BM, BK]
    if TRANSPOSED and not TMA:
        ws = weight + expert.to(tl.int64) * (N * K) + depth.to(tl.int64)[:, None] * N + column[None, :]  # [BK, BN]
    elif not TMA:
        unit = column if N % BN == 0 else tl.minimum(column, N - 1)
        ws = weight + expert.to(tl.int64) * (N * K) + unit.to(tl.int64)[:, None] * K + depth[None, :]  # [BN, BK]
    total = tl.zeros([BN, BM], tl.float32) if SWAP else tl.zeros([BM, BN], tl.float32)
    for k in range(0, K, BK):
        deep = k + depth < K
        rows = tl.load(xs + k, mask=live[:, None] & deep[None, :], other=0.0)
        if TRANSPOSED and TMA:
            some = tl.trans(weight.load([expert, k, n * BN]).reshape(BK, BN))
        elif TRANSPOSED:
            some = tl.trans(tl.load(ws, mask=deep[:, None] & (column < N)[None, :], other=0.0))
            ws += BK * N
        elif TMA:
            some = weight.load([expert, n * BN, k // PACK]).reshape(BN, BK // PACK)
        elif K % BK == 0:
            some = tl.load(ws + k)
        else:
            some = tl.load(ws + k, mask=deep[None, :], other=0.0)
        some = converted(some, rows.dtype)
        if SWAP:
            total = tl.dot(some, tl.trans(rows), total, input_precision=PRECISION)
        else:
            total = tl.dot(rows, tl.trans(some), total, input_precision=PRECISION)
    if SWAP:
        total = tl.trans(total)
    if scales is not None:
        total = scaled(total, scales + expert.to(tl.int64) * N, column, N, row_scales, row, live)
    inside = live[:, None] & (column < N)[None, :]
    at = row.to(tl.int64)[:, None] * N + column[None, :]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _linear_kernel(
    x, weight, scales, row_scales, y, bounds,
    K: tl.constexpr, N: tl.constexpr, TRANSPOSED: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, SHORT: tl.constexpr,
    SWAP: tl.constexpr, TMA: tl.constexpr, PACK: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """y[row] = weight[e] x[row] for sorted rows; weight [E, N, K], or [E, K, N] if TRANSPOSED. SWAP, SHORT as there,
    and `scales` [E, N] and `row_scales` [rows].
    """
    wait(EARLY)
    ACROSS: tl.constexpr = (N + BN - 1) // BN
    expert, local = find_expert(bounds, tl.program_id(0), E, EP, BM, ACROSS)
    if expert >= E:
        return
    first, last = tl.load(bounds + expert), tl.load(bounds + expert + 1)
    m, n = place_tile(local, last - first, BM, ACROSS, GROUP)
    top = first + m * BM
    if SHORT and last - top <= BM // 2:
        linear_tile(
            x, weight, scales, row_scales, y, expert, top, last, n,
            K, N, TRANSPOSED, BM // 2, BN, BK, SWAP, TMA, PACK, PRECISION,
        )  # fmt: skip
    else:
        linear_tile(
            x, weight, scales, row_scales, y, expert, top, last, n,
            K, N, TRANSPOSED, BM, BN, BK, SWAP, TMA, PACK, PRECISION,
        )  # fmt: skip


@triton.jit(do_not_specialize=["tokens"])
def _combine_kernel(
    y, weights, place, out, partial, dweights, tokens,
    HIDDEN: tl.constexpr, TOP_K: tl.constexpr, WEIGHTED: tl.constexpr, PARTS: tl.constexpr,
    BT: tl.constexpr, BH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """out[token] = sum over j of (weights[token, j] if WEIGHTED) y[row of assignment j].

    In the backward, with PARTS, also dweights[token, j] = sum of partial[row of assignment j, :].
    """
    wait(EARLY)
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    live = token < tokens
    unit = tl.program_id(1) * BH + tl.arange(0, BH)
    inside = live[:, None] & (unit < HIDDEN)[None, :]
    total = tl.zeros([BT, BH], tl.float32)
    for j in tl.static_range(TOP_K):
        row = tl.load(place + token * TOP_K + j, mask=live, other=0).to(tl.int64)
        part = tl.load(y + row[:, None] * HIDDEN + unit[None, :], mask=inside, other=0.0).to(tl.float32)
        if WEIGHTED:
            part *= tl.load(weights + token * TOP_K + j, mask=live, other=0.0)[:, None]
        total += part
        if PARTS > 0 and tl.program_id(1) == 0:
            grad = tl.zeros([BT], tl.float32)
            for i in range(PARTS):
                grad += tl.load(partial + row * PARTS + i, mask=live, other=0.0)
            tl.store(dweights + token * TOP_K + j, grad, mask=live)
    tl.store(out + token[:, None] * HIDDEN + unit[None, :], total.to(out.dtype.element_ty), mask=inside)


def tiles_below(assignments: int, experts: int, rows: int) -> int:
    """The most tiles of `rows` rows that `assignments` can make, however they spread over the experts."""
    busy = min(assignments, experts)
    return (assignments + busy * (rows - 1)) // rows


def precision(dtype: torch.dtype) -> str:
    """How products of this type are taken."""
    return float32_precision() if dtype == torch.float32 else "ieee"


def up(
    x: Tensor,
    w13: Tensor,
    groups: Groups,
    top_k: int,
    tile: Tile,
    save: bool,
    scales: Scales = UNSCALED,
    h: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sorted h [T * k, I], or those rows of a given one that `groups.bounds` speaks of.

    From x [T, hidden] and w13 [E, 2, I, hidden]; with `save` also ab [T * k, 2, I].
    """
    count, _, inner, hidden = w13.shape
    rows = len(groups.order)
    h = x.new_empty(rows, inner, dtype=scales.out or x.dtype) if h is None else h
    ab = x.new_empty(rows, 2, inner) if save else h
    half, bk = fit(inner, tile.n // 2), fit_inner(hidden, tile.k)
    weight, tma, pack = readable(w13, [2, half, bk], x, tile)
    _up_kernel[(tiles_below(rows, count, tile.m) * triton.cdiv(inner, half),)](
        x, weight, scales.weight, scales.x, h, ab, groups.order, groups.bounds,
        hidden, inner, count, max(2, triton.next_power_of_2(count)), top_k,
        tile.m, 2 * half, bk, tile.group, tile.short, save, tile.swap, tma, pack, precision(x.dtype),
        num_warps=tile.warps, num_stages=tile.stages, **early(x.device),
    )  # fmt: skip
    return h, ab


def linear(
    x: Tensor,
    weight: Tensor,
    groups: Groups,
    tile: Tile,
    transposed: bool = False,
    scales: Scales = UNSCALED,
    y: Tensor | None = None,
) -> Tensor:
    """Sorted y [rows, N] from sorted x [rows, K] and weight [E, N, K], or [E, K, N] if `transposed`.

    Of a given y, the rows that `groups.bounds` speaks of.
    """
    count, rows, k = len(weight), *x.shape
    n = weight[0].numel() // k
    y = x.new_empty(rows, n, dtype=scales.out or x.dtype) if y is None else y
    bn, bk = fit(n, tile.n), fit_inner(k, tile.k)
    matrices = weight.view(count, k, n) if transposed else weight.view(count, n, k)
    weight, tma, pack = readable(matrices, [1, bk, bn] if transposed else [1, bn, bk], x, tile)
    _linear_kernel[(tiles_below(rows, count, tile.m) * triton.cdiv(n, bn),)](
        x, weight, scales.weight, scales.x, y, groups.bounds,
        k, n, transposed, count, max(2, triton.next_power_of_2(count)),
        tile.m, bn, bk, tile.group, tile.short, tile.swap, tma, pack, precision(x.dtype),
        num_warps=tile.warps, num_stages=tile.stages, **early(x.device),
    )  # fmt: skip
    return y


def combine(
    y: Tensor, weights: Tensor, groups: Groups, *, weighted: bool = True, partial: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The sum of every token's rows of sorted y: [T, hidden] in y's dtype, times weights [T, k] if `weighted`.

    With `partial` float32 [T * k, parts], its row sums come second, as [T, k].
    """
    (tokens, top_k), hidden = weights.shape, y.shape[1]
    out = y.new_empty(tokens, hidden)
    sums = weights if partial is None else torch.empty_like(weights)
    units = min(1024, triton.next_power_of_2(hidden))
    some = max(1, 4096 // units) if tokens > 256 else 1
    _combine_kernel[triton.cdiv(tokens, some), triton.cdiv(hidden, units)](
        y, weights, groups.place, out, weights if partial is None else partial, sums, tokens,
        hidden, top_k, weighted, 0 if partial is None else partial.shape[1], some, units, num_warps=4,
        **early(y.device),
    )  # fmt: skip
    return out, sums
