"""Kernels of lightning attention, for the output and, with other operands and backwards in time, for its gradient.

A sequence is cut into segments (`segments.cut`). One program owns a segment, a head and BV of the d columns of the
result: it walks the segment's chunks of C tokens with its share of the state, transposed, float32 [BV, d], in
registers.

Segments of one sequence depend on each other only through the state between them. `gain_kernel` computes what pieces of
the sequence add to it, `scan_kernel` turns that into the state before every piece, and a walk starts from there. Where
every sequence is one segment, the walk is the whole op.

Operands of products are bfloat16 for bfloat16 inputs, else float32. A decay multiplies a float32 value before that
value is rounded, and is always `exp` of a non-positive number.
"""

from __future__ import annotations

import triton
import triton.language as tl

from text_backbone.kernels.overlap import wait

# Of two bfloat16 numbers x their x / 2 and tanh(x / 2), float32: five instructions; tanh to 2^-11.
HALF_AND_TANH = tl.constexpr(
    """{
    .reg .b32 factor, zeros, low, high;
    mov.b32 factor, 0x3f003f00;
    mov.b32 zeros, 0x80008000;
    fma.rn.bf16x2 low, $4, factor, zeros;
    and.b32 high, low, 0xffff0000;
    shl.b32 low, low, 16;
    mov.b32 $0, low;
    mov.b32 $1, high;
    tanh.approx.f32 $2, low;
    tanh.approx.f32 $3, high;
    }"""
)


@triton.jit
def half_and_tanh(x):
    """x / 2 and tanh(x / 2), float32, of a bfloat16 tile."""
    return tl.inline_asm_elementwise(
        HALF_AND_TANH,
        "=f,=f,=f,=f,r", [x], dtype=(tl.float32, tl.float32), is_pure=True, pack=2,
    )  # fmt: skip


@triton.jit
def silu(x, FAST: tl.constexpr):
    """SiLU of a loaded tile, float32; FAST, of a bfloat16 one, as h + h tanh(h) with h = x / 2."""
    if FAST:
        half, tanh = half_and_tanh(x)
        return tl.fma(half, tanh, half)
    x = x.to(tl.float32)
    return x / (1.0 + tl.exp(-x))


@triton.jit
def silu_slope(x, FAST: tl.constexpr):
    """The derivative of SiLU at a loaded tile, float32: of h + h t it is (1 + t + h (1 - t^2)) / 2."""
    if FAST:
        half, tanh = half_and_tanh(x)
        return tl.fma(0.5, tl.fma(half, 1.0 - tanh * tanh, tanh), 0.5)
    x = x.to(tl.float32)
    gate = 1.0 / (1.0 + tl.exp(-x))
    return gate * (1.0 + x * (1.0 - gate))


@triton.jit
def operand(x, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """A float32 tile as an operand of `tl.dot`; tensor cores would cut off, not round, what tf32 cannot hold."""
    if tl.float32 == OPERAND and PRECISION == "tf32":
        x = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return x.to(OPERAND)


@triton.jit
def load_rows(base, first, rows, filled, ROW: tl.constexpr, WIDTH: tl.constexpr):
    """A tile [C, WIDTH], rows ROW apart, from row `first`; rows from `filled` on are zero."""
    pointers = base + first * ROW + rows[:, None] * ROW + tl.arange(0, WIDTH)[None, :]
    return tl.load(pointers, mask=(rows < filled)[:, None], other=0.0)


@triton.jit
def load_tile(
    base, first, rows, filled, FUSED: tl.constexpr, HD: tl.constexpr, WIDTH: tl.constexpr, FAST: tl.constexpr
):
    """A float32 tile: SiLU of columns of the fused projection, or, not FUSED, columns of the output's gradient."""
    if FUSED:
        return silu(load_rows(base, first, rows, filled, 3 * HD, WIDTH), FAST)
    return load_rows(base, first, rows, filled, HD, WIDTH).to(tl.float32)


@triton.jit
def state_pointers(
    base, block, index, head, TRANSPOSED: tl.constexpr, H: tl.constexpr, D: tl.constexpr, BV: tl.constexpr
):
    """Pointers [BV, D]: rows `block` of state `index` in a [., H, D, D] tensor, or of its transpose."""
    at = base + (index * H + head) * (D * D)
    mine, all_ = block * BV + tl.arange(0, BV), tl.arange(0, D)
    if TRANSPOSED:
        return at + all_[None, :] * D + mine[:, None]
    return at + mine[:, None] * D + all_[None, :]


@triton.jit
def all_if(condition, D: tl.constexpr):
    """A mask [1, D] of nothing but the scalar `condition`."""
    return (tl.arange(0, D) < tl.where(condition, D, 0))[None, :]


@triton.jit
def load_cell(cells, cell, block, head, TRANSPOSED: tl.constexpr, H: tl.constexpr, D: tl.constexpr, BV: tl.constexpr):
    """Rows `block` [BV, D] of a cell, zero where there is none (cell -1)."""
    pointers = state_pointers(cells, block, tl.maximum(cell, 0), head, TRANSPOSED, H, D, BV)
    return tl.load(pointers, mask=all_if(cell >= 0, D), other=0.0)


@triton.jit
def add_gain(
    state, b, c, rate, length, REVERSE: tl.constexpr, HD: tl.constexpr, D: tl.constexpr, BV: tl.constexpr,
    C: tl.constexpr, FAST: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The state [BV, D] after a piece, or before it if REVERSE, from `state`, that at its other end.

    b [., D] and c [., BV] point at the piece's first row; c is in the fused projection or, if REVERSE, a gradient.
    """
    rows = tl.arange(0, C)
    chunks = tl.cdiv(length, C)
    for i in tl.range(0, chunks, num_stages=STAGES):
        first = tl.cast(chunks - 1 - i if REVERSE else i, tl.int64) * C
        filled = tl.minimum(length - first, C).to(tl.int32)
        b_tile = operand(load_tile(b, first, rows, filled, True, HD, D, FAST), OPERAND, PRECISION)
        c_tile = load_tile(c, first, rows, filled, not REVERSE, HD, BV, FAST)
        between = rows if REVERSE else tl.maximum(filled - 1 - rows, 0)  # tokens from a row to that end
        c_tile = operand(c_tile * tl.exp(-rate * between)[:, None], OPERAND, PRECISION)
        state = tl.dot(tl.trans(c_tile), b_tile, state * tl.exp(-rate * filled), input_precision=PRECISION)
    return state


@triton.jit
def walk(
    state, a, b, c, x, out, rate, length, PLAIN: tl.constexpr, REVERSE: tl.constexpr,
    HD: tl.constexpr, D: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write out_i = sum over j <= i, or j >= i if REVERSE, of exp(-s |i - j|) (a_i . b_j) c_j, for a segment.

    Args:
        state: [BV, D], the transpose of what tokens before the segment (after it if REVERSE) add up to.
        a, b: [., D] at the segment's first row; c, out: [., BV].
        PLAIN: "a", "b" or "c" is a gradient in the layout of the output, the others are in the fused projection.
        x: None, or `out` is the gradient of SiLU(x), to be written as that of x, and both are in the fused layout.

    Returns:
        The state at the segment's other end.
    """
    rows = tl.arange(0, C)
    chunks = tl.cdiv(length, C)
    ages = rows[None, :] - rows[:, None] if REVERSE else rows[:, None] - rows[None, :]
    decay = tl.where(ages >= 0, tl.exp(-rate * tl.maximum(ages, 0)), 0.0)
    for i in tl.range(0, chunks, num_stages=STAGES):
        first = tl.cast(chunks - 1 - i if REVERSE else i, tl.int64) * C
        filled = tl.minimum(length - first, C).to(tl.int32)
        # This order of the products keeps the fewest tiles alive at a time.
        a_tile = operand(load_tile(a, first, rows, filled, PLAIN != "a", HD, D, FAST), OPERAND, PRECISION)
        reach = tl.maximum(filled - rows, 0) if REVERSE else rows + 1  # to the state's token
        o = tl.dot(a_tile, tl.trans(operand(state, OPERAND, PRECISION)), input_precision=PRECISION)
        o *= tl.exp(-rate * reach)[:, None]
        b_tile = operand(load_tile(b, first, rows, filled, PLAIN != "b", HD, D, FAST), OPERAND, PRECISION)
        c_tile = load_tile(c, first, rows, filled, PLAIN != "c", HD, BV, FAST)
        between = rows if REVERSE else tl.maximum(filled - 1 - rows, 0)
        faded = operand(c_tile * tl.exp(-rate * between)[:, None], OPERAND, PRECISION)
        c_tile = operand(c_tile, OPERAND, PRECISION)
        state = tl.dot(tl.trans(faded), b_tile, state * tl.exp(-rate * filled), input_precision=PRECISION)
        scores = tl.dot(a_tile, tl.trans(b_tile), input_precision=PRECISION) * decay
        o = tl.dot(operand(scores, OPERAND, PRECISION), c_tile, o, input_precision=PRECISION)
        row = HD
        if x is not None:
            row = 3 * HD
            o *= silu_slope(load_rows(x, first, rows, filled, 3 * HD, BV), FAST)
        pointers = out + first * row + rows[:, None] * row + tl.arange(0, BV)[None, :]
        tl.store(pointers, o.to(out.dtype.element_ty), mask=(rows < filled)[:, None])
    return state


@triton.jit
def gain_kernel(
    qkv, grad, cells, slopes, pieces, REVERSE: tl.constexpr,
    H: tl.constexpr, D: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """cells [., H, D, D]: the sum of k^T v over a piece, decayed to its end; REVERSE, of q^T grad, to its beginning.

    Those of pieces that nothing comes after, or before if REVERSE, are not needed.
    """
    wait(EARLY)
    BLOCKS: tl.constexpr = D // BV
    pid = tl.program_id(0)
    block, head, cell = pid % BLOCKS, pid // BLOCKS % H, (pid // (H * BLOCKS)).to(tl.int64)
    row = pieces + cell * 6
    if tl.load(row + (2 if REVERSE else 3)) == 0:
        start, length = tl.load(row), tl.load(row + 1).to(tl.int32)
        rate = tl.load(slopes + head)
        x = qkv + start * (3 * H * D) + head * (3 * D)
        b = x if REVERSE else x + D
        c = grad + start * (H * D) + head * D if REVERSE else x + 2 * D
        gain = tl.zeros((BV, D), tl.float32)
        gain = add_gain(
            gain, b, c + block * BV, rate, length, REVERSE, H * D, D, BV, C, FAST, OPERAND, PRECISION, STAGES
        )  # fmt: skip
        tl.store(state_pointers(cells, block, cell, head, True, H, D, BV), gain)


@triton.jit
def cell_pointers(cells, cell, i, head, at, count, H: tl.constexpr, D: tl.constexpr, REVERSE: tl.constexpr):
    """Elements `at` of the i-th cell of a chain of `count` that begins with `cell`; REVERSE counts from its end."""
    index = count - 1 - i if REVERSE else i
    return cells + ((cell + index) * H + head) * (D * D) + at


@triton.jit
def pass_piece(state, gain, pointers, i, count, parts, length, rate, REVERSE: tl.constexpr):
    """Leave the state where a segment begins (ends if REVERSE), and take it past the i-th piece."""
    index = count - 1 - i if REVERSE else i
    wanted = (index % parts == parts - 1) | (i == 0) if REVERSE else index % parts == 0
    if wanted:
        tl.store(pointers, state)
    return gain + state * tl.exp(-rate * length)


@triton.jit(do_not_specialize=["piece", "parts"])
def scan_kernel(
    cells, states, slots, slopes, chains, piece, parts,
    H: tl.constexpr, D: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """cells, in place: gains of the pieces of each chain -> the states before those that begin a segment.

    A segment is `parts` pieces. REVERSE: the states after the pieces that end one, from the last segment's on. The
    other cells keep their gains.

    slots: [n], which of `states` a sequence starts from; None if chains say it: what they take or, REVERSE, give.
    """
    wait(EARLY)
    pid = tl.program_id(0)
    BLOCKS: tl.constexpr = D * D // BLOCK
    row = chains + (pid // (H * BLOCKS)).to(tl.int64) * 6
    head = pid // BLOCKS % H
    at = pid % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    sequence, cell, count, tail = tl.load(row), tl.load(row + 1), tl.load(row + 2).to(tl.int32), tl.load(row + 3)
    rate = tl.load(slopes + head)
    state = tl.zeros((BLOCK,), tl.float32)
    if states is not None:
        slot = tl.load(row + (5 if REVERSE else 4)) if slots is None else tl.load(slots + sequence)
        cached = states + (tl.maximum(slot, 0) * H + head) * (D * D) + at
        state = tl.load(cached, mask=at < tl.where(slot >= 0, D * D, 0), other=0.0).to(tl.float32)
    needed = tl.maximum(count - parts, 0) + 1 if REVERSE else (count - 1) // parts * parts + 1
    length = tail.to(tl.int32) if REVERSE else piece  # of the first piece
    for i in range(0, needed, 2):  # two loads in flight, whose waits are most of the time here
        here = cell_pointers(cells, cell, i, head, at, count, H, D, REVERSE)
        there = cell_pointers(cells, cell, i + 1, head, at, count, H, D, REVERSE)
        gain = tl.load(here, mask=at < (needed - 1 - i) * (D * D), other=0.0)  # the last one's is not needed
        next_gain = tl.load(there, mask=at < (needed - 2 - i) * (D * D), other=0.0)
        state = pass_piece(state, gain, here, i, count, parts, length, rate, REVERSE)
        if i + 1 < needed:
            state = pass_piece(state, next_gain, there, i + 1, count, parts, piece, rate, REVERSE)
        length = piece


@triton.jit(do_not_specialize=["piece"])
def sum_kernel(
    cells, given, slopes, chains, piece,
    H: tl.constexpr, D: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """given [., H, D, D]: the gains of all pieces of a chain that gives, decayed to its end, or to its beginning if
    REVERSE, when those that take give.

    ROWS pieces are in flight at a time.
    """
    wait(EARLY)
    pid = tl.program_id(0)
    BLOCKS: tl.constexpr = D * D // BLOCK
    row = chains + (pid // (H * BLOCKS)).to(tl.int64) * 6
    slot = tl.load(row + (4 if REVERSE else 5))
    if slot >= 0:
        head = pid // BLOCKS % H
        at = pid % BLOCKS * BLOCK + tl.arange(0, BLOCK)
        cell, count, tail = tl.load(row + 1), tl.load(row + 2).to(tl.int32), tl.load(row + 3)
        rate = tl.load(slopes + head)
        state = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, count, ROWS):
            index = first + tl.arange(0, ROWS)
            after = tl.where(index < count - 1, (count - 2 - index).to(tl.int64) * piece + tail, 0)
            between = index.to(tl.int64) * piece if REVERSE else tl.maximum(after, 0)
            pointers = cells + ((cell + index) * H + head)[:, None] * (D * D) + at[None, :]
            gains = tl.load(pointers, mask=(index < count)[:, None], other=0.0)
            state += tl.sum(gains * tl.exp(-rate * between)[:, None], axis=0)
        tl.store(given + (slot * H + head) * (D * D) + at, state)


@triton.jit
def walk_kernel(
    qkv, out, states, slots, cells, slopes, table,
    H: tl.constexpr, D: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out [T, H * D] of every segment, from its cell, or from the cached state where the sequence is one segment.

    The last segment of a sequence leaves the state after it in `states` [., H, D, D] at the sequence's slot.
    """
    BLOCKS: tl.constexpr = D // BV
    pid = tl.program_id(0)
    block, head = pid % BLOCKS, pid // BLOCKS % H
    row = table + (pid // (H * BLOCKS)).to(tl.int64) * 6
    start, length, cell = tl.load(row), tl.load(row + 1).to(tl.int32), tl.load(row + 3)
    rate = tl.load(slopes + head)
    state = load_cell(cells, cell, block, head, True, H, D, BV)
    if states is not None:
        cached = state_pointers(states, block, tl.load(slots + tl.load(row + 2)), head, True, H, D, BV)
        state += tl.load(cached, mask=all_if(cell < 0, D), other=0.0).to(tl.float32)
    q = qkv + start * (3 * H * D) + head * (3 * D)
    o = out + start * (H * D) + head * D + block * BV
    state = walk(
        state, q, q + D, q + 2 * D + block * BV, None, o, rate, length, "", False,
        H * D, D, BV, C, FAST, OPERAND, PRECISION, STAGES,
    )  # fmt: skip
    if states is not None:
        cached = state_pointers(states, block, tl.load(slots + tl.load(row + 2)), head, True, H, D, BV)
        tl.store(cached, state.to(states.dtype.element_ty), mask=all_if(tl.load(row + 5) != 0, D))
