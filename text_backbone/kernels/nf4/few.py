"""Products of a few rows with NF4 matrices: a program walks through tiles, and its warps share the depth.

The table of look-ups is filled once for a program, hence as many programs as fit at a time, not one for every tile.
"""

# mypy: disable-error-code="assignment"
# ruff: noqa: RUF005 (Triton has tuples that grow by addition alone)
from __future__ import annotations

import triton
import triton.language as tl

from text_backbone.kernels.moe.grouped import find_expert
from text_backbone.kernels.nf4.lanes import arranged, fill_table, keep, swept, total, total_of_first
from text_backbone.kernels.overlap import wait


@triton.jit(do_not_specialize=["count"])
def arrange_kernel(x, out, count, K: tl.constexpr, SIZE: tl.constexpr, EARLY: tl.constexpr):
    """Rows of K values, arranged."""
    wait(EARLY)
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    tl.store(out + at // K * K + arranged(at % K), tl.load(x + at, mask=at < count), mask=at < count)


@triton.jit(do_not_specialize=["assignments", "first", "stride"])
def up_kernel(
    x, codes, scales, nested, offset, pairs, experts, bounds, h, assignments, first, stride,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, NESTED: tl.constexpr, TOP_K: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, NT: tl.constexpr, SORTED: tl.constexpr, ONE: tl.constexpr, WARPS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """h[row] = SiLU(w1 x) * w3 x, arranged, of 8 inner units and up to 4 NT rows of one expert.

    SORTED: rows are sorted by expert, `experts` is their order, `bounds` says where each begins, and x is arranged.
    Otherwise each assignment is worked by itself, and `experts` says whose it is; ONE: all are of one token, of at most
    6144 units. Matrix rows g are w1's, g + 8 w3's.
    """
    ACROSS: tl.constexpr = (INNER + 7) // 8
    thread = tl.arange(0, 32 * WARPS)
    lane, warp = thread % 32, thread // 32
    table = fill_table(pairs, thread, 32 * WARPS, ONE)
    wait(EARLY)
    if ONE:
        kept = keep(x, table, thread, HIDDEN, 32 * WARPS)
    tiles = _tiles(bounds, assignments, ACROSS, E, EP, NT, SORTED)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        if SORTED:
            expert, top, last, unit = _place(bounds, tile, ACROSS, E, EP, NT)
            unit = unit * 8
        else:
            top, unit = tile // ACROSS, tile % ACROSS * 8
            expert, last = tl.load(experts + top), top + 1
        xs = ()
        live = ()
        for n in tl.static_range(NT):
            row = top + 4 * n + lane // 4 % 4
            here = (row < last) & (lane // 16 == lane % 4 // 2)
            if SORTED:
                row = tl.load(experts + row, mask=here, other=0)
            xs = xs + (kept // 8 if ONE else x.to(tl.pointer_type(tl.int64)) + row // TOP_K * (HIDDEN // 4),)
            live = live + (here,)
        matrix = expert.to(tl.int64) * 2
        row = tl.minimum(unit + lane // 4, INNER - 1)
        half = lane % 4 // 2  # whether this lane decodes w3's scales
        sums = swept(
            xs, live, codes.to(tl.pointer_type(tl.int64)) + matrix * (INNER * (HIDDEN // 16)),
            scales.to(tl.pointer_type(tl.int64)) + matrix * (INNER * (HIDDEN // 512)),
            nested + (matrix + half) * NESTED, tl.load(offset + matrix + half),
            row, row + INNER, row + half * INNER, first + row * stride, warp, lane, table,
            HIDDEN, WARPS, NT, SORTED or ONE,
            x.dtype.element_ty == tl.float16,
        )  # fmt: skip
        at = tl.arange(0, 32)
        inner = unit + at // 4
        for i in tl.static_range(2 * NT if SORTED else 1):
            a = total(sums, lane, i // 2 * 4 + i % 2, WARPS)
            b = total(sums, lane, i // 2 * 4 + i % 2 + 2, WARPS)
            token = top + i // 2 * 4 + at % 4 * 2 + i % 2
            value = (a * tl.sigmoid(a) * b).to(h.dtype.element_ty)
            inside = (at % 4 < 2) & (token < last) & (inner < INNER)
            tl.store(h + token * INNER + arranged(inner), value, mask=inside)


@triton.jit
def _tiles(bounds, count, across, E: tl.constexpr, EP: tl.constexpr, NT: tl.constexpr, SORTED: tl.constexpr):
    """How many tiles there are: `across` for every 4 NT rows of an expert, or for each of `count` if not SORTED."""
    if not SORTED:
        return count * across
    bins = tl.arange(0, EP)
    first = tl.load(bounds + bins, mask=bins < E, other=0)
    last = tl.load(bounds + bins + 1, mask=bins < E, other=0)
    return tl.sum((last - first + (4 * NT - 1)) // (4 * NT) * across, 0)


@triton.jit
def _place(bounds, tile, ACROSS: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, NT: tl.constexpr):
    """Of a tile: its expert, first row, the expert's last row + 1, and which of ACROSS. Those of one are neighbours."""
    expert, local = find_expert(bounds, tile, E, EP, 4 * NT, ACROSS)
    first, last = tl.load(bounds + expert), tl.load(bounds + expert + 1)
    down = (last - first + (4 * NT - 1)) // (4 * NT)
    return expert, first + local % down * (4 * NT), last, local // down


@triton.jit(do_not_specialize=["rows", "stride"])
def linear_kernel(
    x, codes, scales, nested, offset, pairs, bounds, y, apart, rows, first, stride,
    K: tl.constexpr, N: tl.constexpr, NESTED: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    NT: tl.constexpr, SORTED: tl.constexpr, ARRANGED: tl.constexpr, ONE: tl.constexpr, WARPS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """y[row] = weight[e] x[row] of 16 units and up to 4 NT rows; one matrix, or SORTED: those of an expert each.

    Several matrices may multiply the same rows. Tuples, one for each: codes, scales, nested, offset, y, whose rows
    begin so far `apart`, first, N and NESTED. ONE: there is one row, of at most 6144 values.
    """
    thread = tl.arange(0, 32 * WARPS)
    lane, warp = thread % 32, thread // 32
    table = fill_table(pairs, thread, 32 * WARPS, ONE)
    wait(EARLY)
    if ONE:
        kept = keep(x, table, thread, K, 32 * WARPS)
    down = (rows + (4 * NT - 1)) // (4 * NT)
    across = 0
    for i in tl.static_range(len(N)):
        across += (N[i] + 15) // 16
    tiles = _tiles(bounds, down, across, E, EP, NT, SORTED)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        if SORTED:
            expert, top, last, unit = _place(bounds, tile, (N[0] + 15) // 16, E, EP, NT)
            matrix = expert.to(tl.int64)
        else:
            top, unit, last = tile % down * (4 * NT), tile // down, rows
            matrix = tl.zeros([], tl.int64)
        which, unit = _matrix(unit, N)
        unit, units = unit * 16, _pick(N, which)
        xs = ()
        live = ()
        for n in tl.static_range(NT):
            row = top + 4 * n + lane // 4 % 4
            xs = xs + (kept // 8 if ONE else x.to(tl.pointer_type(tl.int64)) + row * (K // 4),)
            live = live + ((row < last) & (lane // 16 == lane % 4 // 2),)
        row = tl.minimum(unit + lane // 4, units - 1)
        under = tl.minimum(row + 8, units - 1)
        line = tl.where(lane % 4 < 2, row, under)
        sums = swept(
            xs, live, _pick(codes, which).to(tl.pointer_type(tl.int64)) + matrix * (units * (K // 16)),
            _pick(scales, which).to(tl.pointer_type(tl.int64)) + matrix * (units * (K // 512)),
            _pick(nested, which) + matrix * _pick(NESTED, which), tl.load(_pick(offset, which) + matrix),
            row, under, line, _pick(first, which) + line * stride, warp, lane, table,
            K, WARPS, NT, ARRANGED or ONE, x.dtype.element_ty == tl.float16,
        )  # fmt: skip
        to, at = _pick(y, which), tl.arange(0, 32)
        if ONE:
            value = total_of_first(sums[0], sums[2], lane, WARPS)
            out = unit + at // 4 + at % 4 * 8
            tl.store(to + out, value.to(to.dtype.element_ty), mask=(at % 4 < 2) & (out < units))
        for i in tl.static_range(0 if ONE else 4 * NT):
            value = total(sums, lane, i, WARPS)
            token = top + i // 4 * 4 + at % 4 * 2 + i % 2
            out = unit + at // 4 + i // 2 % 2 * 8
            inside = (at % 4 < 2) & (token < last) & (out < units)
            tl.store(to + token * _pick(apart, which) + out, value.to(to.dtype.element_ty), mask=inside)


@triton.jit
def _matrix(across, N: tl.constexpr):
    """Of a tile across all matrices: whose it is, and which of its own."""
    which, begin, next = tl.zeros([], tl.int32), tl.zeros([], tl.int32), tl.zeros([], tl.int32)
    for i in tl.static_range(1, len(N)):
        next += (N[i - 1] + 15) // 16
        which = tl.where(across >= next, i, which)
        begin = tl.where(across >= next, next, begin)
    return which, across - begin


@triton.jit
def _pick(values, which):
    picked = values[0]
    for i in tl.static_range(1, len(values)):
        picked = tl.where(which == i, values[i], picked)
    return picked


@triton.jit(do_not_specialize=["tokens", "first", "stride"])
def down_kernel(
    h, codes, scales, nested, offset, pairs, weights, experts, out, tokens, first, stride,
    HIDDEN: tl.constexpr, INNER: tl.constexpr, NESTED: tl.constexpr, TOP_K: tl.constexpr,
    WARPS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """out[token] = sum over j of weights[token, j] w2 h[assignment j] of 16 units; each j has a share of the warps."""
    SHARE: tl.constexpr = WARPS // TOP_K
    ACROSS: tl.constexpr = (HIDDEN + 15) // 16
    thread = tl.arange(0, 32 * WARPS)
    lane, warp = thread % 32, thread // 32
    table = fill_table(pairs, thread, 32 * WARPS)
    wait(EARLY)
    for tile in range(tl.program_id(0), tokens * ACROSS, tl.num_programs(0)):
        token, unit = tile // ACROSS, tile % ACROSS * 16
        assignment = token * TOP_K + warp // SHARE
        matrix = tl.load(experts + assignment)
        row = tl.minimum(unit + lane // 4, HIDDEN - 1)
        under = tl.minimum(row + 8, HIDDEN - 1)
        line = tl.where(lane % 4 < 2, row, under)
        sums = swept(
            (h.to(tl.pointer_type(tl.int64)) + assignment * (INNER // 4),),
            ((lane // 4 % 4 == 0) & (lane // 16 == lane % 4 // 2),),
            codes.to(tl.pointer_type(tl.int64)) + matrix * (HIDDEN * (INNER // 16)),
            scales.to(tl.pointer_type(tl.int64)) + matrix * (HIDDEN * (INNER // 512)), nested + matrix * NESTED,
            tl.load(offset + matrix), row, under, line, first + line * stride, warp % SHARE, lane, table,
            INNER, SHARE, 1, True, h.dtype.element_ty == tl.float16,
        )  # fmt: skip
        weight = tl.load(weights + assignment)
        at = tl.arange(0, 32)
        value = total_of_first(sums[0] * weight, sums[2] * weight, lane, WARPS)
        place = unit + at // 4 + at % 4 * 8
        inside = (at % 4 < 2) & (place < HIDDEN)
        tl.store(out + token * HIDDEN + place, value.to(out.dtype.element_ty), mask=inside)
