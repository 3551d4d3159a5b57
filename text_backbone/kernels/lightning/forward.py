"""Forward kernels of lightning attention.

A sequence is cut into segments (`Packed.segments`). One program owns a segment, a head and BV of the d value columns:
it walks the segment's chunks of C tokens with its share of the state, float32 [d, BV], in registers.

Segments of one sequence depend on each other only through the state between them. `gain_kernel` computes what every
segment adds to it, `scan_kernel` turns that into the state before every segment, and `walk_kernel` starts there. Where
every sequence is one segment, `walk_kernel` is the whole op.

Operands of products are bfloat16 for bfloat16 inputs, else float32. A decay multiplies a float32 value before that
value is rounded, and is always `exp` of a non-positive number.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x, FAST: tl.constexpr):
    """1 / (1 + exp(-x)) of a float32 tile; FAST is one instruction, to a relative 2^-11 of the tanh in it."""
    if FAST:
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [0.5 * x], dtype=tl.float32, is_pure=True, pack=1
        )
        return 0.5 * tanh + 0.5
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def operand(x, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """A float32 tile as an operand of `tl.dot`; tensor cores would cut off, not round, what tf32 cannot hold."""
    if tl.float32 == OPERAND and PRECISION == "tf32":
        x = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return x.to(OPERAND)


@triton.jit
def load_rows(pointers, rows, filled):
    """A float32 tile [C, n]; rows from `filled` on are zero."""
    return tl.load(pointers, mask=(rows < filled)[:, None], other=0.0).to(tl.float32)


@triton.jit
def load_silu(pointers, rows, filled, FAST: tl.constexpr):
    x = load_rows(pointers, rows, filled)
    return x * sigmoid(x, FAST)


@triton.jit
def causal_decay(rate, C: tl.constexpr):
    """[C, C], exp(-s (i - j)) where j <= i, else 0."""
    ages = tl.arange(0, C)[:, None] - tl.arange(0, C)[None, :]
    return tl.where(ages >= 0, tl.exp(-rate * tl.maximum(ages, 0)), 0.0)


@triton.jit
def state_pointers(base, block, index, head, H: tl.constexpr, D: tl.constexpr, BV: tl.constexpr):
    """Pointers [D, BV] to value columns `block` of state `index` in a [., H, D, D] tensor."""
    at = base + (index * H + head) * D * D + block * BV
    return at + tl.arange(0, D)[:, None] * D + tl.arange(0, BV)[None, :]


@triton.jit
def program_of(table, H: tl.constexpr, BLOCKS: tl.constexpr):
    """This program's value block and head; its segment's first row, length, sequence, cell, whether it is the last."""
    pid = tl.program_id(0)
    row = table + (pid // (H * BLOCKS)).to(tl.int64) * 5
    start, length, sequence = tl.load(row), tl.load(row + 1).to(tl.int32), tl.load(row + 2)
    return pid % BLOCKS, pid // BLOCKS % H, start, length, sequence, tl.load(row + 3), tl.load(row + 4)


@triton.jit
def add_gain(
    gain, qkv, rate, block, head, start, length,
    H: tl.constexpr, D: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The state [D, BV] after a segment, from `gain`, the state before it."""
    rows = tl.arange(0, C)
    x = qkv + start * (3 * H * D) + head * (3 * D)
    k_at = D + rows[:, None] * (3 * H * D) + tl.arange(0, D)[None, :]
    v_at = 2 * D + block * BV + rows[:, None] * (3 * H * D) + tl.arange(0, BV)[None, :]
    for first in tl.range(0, length, C, num_stages=STAGES):
        filled = tl.minimum(length - first, C)
        k = load_silu(x + k_at, rows, filled, FAST)
        v = load_silu(x + v_at, rows, filled, FAST)
        left = tl.maximum(filled - 1 - rows, 0)  # tokens of the chunk after each; rows beyond it hold k = 0
        k = operand(k * tl.exp(-rate * left)[:, None], OPERAND, PRECISION)
        v = operand(v, OPERAND, PRECISION)
        gain = tl.dot(tl.trans(k), v, gain * tl.exp(-rate * filled), input_precision=PRECISION)
        x += C * 3 * H * D
    return gain


@triton.jit
def walk(
    state, qkv, out, rate, block, head, start, length,
    H: tl.constexpr, D: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write a segment's outputs, starting from `state` [D, BV]; returns the state after it."""
    rows = tl.arange(0, C)
    x = qkv + start * (3 * H * D) + head * (3 * D)
    y = out + start * (H * D) + head * D + block * BV
    q_at = rows[:, None] * (3 * H * D) + tl.arange(0, D)[None, :]
    v_at = 2 * D + block * BV + rows[:, None] * (3 * H * D) + tl.arange(0, BV)[None, :]
    o_at = rows[:, None] * (H * D) + tl.arange(0, BV)[None, :]
    decay = causal_decay(rate, C)
    since = tl.exp(-rate * (rows + 1))[:, None]
    for first in tl.range(0, length, C, num_stages=STAGES):
        filled = tl.minimum(length - first, C)
        q = operand(load_silu(x + q_at, rows, filled, FAST), OPERAND, PRECISION)
        k = load_silu(x + D + q_at, rows, filled, FAST)
        v = operand(load_silu(x + v_at, rows, filled, FAST), OPERAND, PRECISION)
        scores = tl.dot(q, tl.trans(operand(k, OPERAND, PRECISION)), input_precision=PRECISION) * decay
        o = tl.dot(q, operand(state, OPERAND, PRECISION), input_precision=PRECISION) * since
        o = tl.dot(operand(scores, OPERAND, PRECISION), v, o, input_precision=PRECISION)
        left = tl.maximum(filled - 1 - rows, 0)
        k = operand(k * tl.exp(-rate * left)[:, None], OPERAND, PRECISION)
        state = tl.dot(tl.trans(k), v, state * tl.exp(-rate * filled), input_precision=PRECISION)
        tl.store(y + o_at, o.to(out.dtype.element_ty), mask=(rows < filled)[:, None])
        x += C * 3 * H * D
        y += C * H * D
    return state


@triton.jit
def gain_kernel(
    qkv, cells, slopes, table,
    H: tl.constexpr, D: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """cells [., H, D, D] at a segment's cell: the state after the segment had it been zero before."""
    block, head, start, length, _, cell, last = program_of(table, H, D // BV)
    if last == 0:
        gain = tl.zeros((D, BV), tl.float32)
        rate = tl.load(slopes + head)
        gain = add_gain(
            gain, qkv, rate, block, head, start, length, H, D, BV, C, FAST, OPERAND, PRECISION, STAGES
        )  # fmt: skip
        tl.store(state_pointers(cells, block, cell, head, H, D, BV), gain)


@triton.jit(do_not_specialize_on_alignment=["chains"])
def scan_kernel(
    cells, states, slots, slopes, chains,
    H: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """cells, in place: gains of the segments of each chained sequence -> the states before them.

    REVERSE: the state after each segment, of a recurrence that runs from the last token to the first.
    """
    pid = tl.program_id(0)
    BLOCKS: tl.constexpr = D * D // BLOCK
    row = chains + (pid // (H * BLOCKS)).to(tl.int64) * 5
    head = pid // BLOCKS % H
    at = pid % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    sequence, first, count, tail = tl.load(row), tl.load(row + 1), tl.load(row + 2).to(tl.int32), tl.load(row + 3)
    rate = tl.load(slopes + head)
    state = tl.zeros((BLOCK,), tl.float32)
    if states is not None:
        state = tl.load(states + (tl.load(slots + sequence) * H + head) * D * D + at).to(tl.float32)
    for i in range(count):
        index = count - 1 - i if REVERSE else i
        pointers = cells + ((first + index) * H + head) * D * D + at
        gain = tl.load(pointers, mask=at < (count - 1 - i) * D * D, other=0.0)  # the last is not needed
        tl.store(pointers, state)
        length = tail.to(tl.int32) if REVERSE and i == 0 else SIZE
        state = gain + state * tl.exp(-rate * length)


@triton.jit
def walk_kernel(
    qkv, out, states, slots, cells, slopes, table,
    H: tl.constexpr, D: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out [T, H * D] of every segment, from its cell, or from the cached state where the sequence is one segment.

    The last segment of a sequence leaves the state after it in `states` [., H, D, D] at the sequence's slot.
    """
    block, head, start, length, sequence, cell, last = program_of(table, H, D // BV)
    rate = tl.load(slopes + head)
    state = tl.zeros((D, BV), tl.float32)
    if cell >= 0:
        if cells is not None:
            state = tl.load(state_pointers(cells, block, cell, head, H, D, BV))
    elif states is not None:
        slot = tl.load(slots + sequence)
        state = tl.load(state_pointers(states, block, slot, head, H, D, BV)).to(tl.float32)
    state = walk(
        state, qkv, out, rate, block, head, start, length, H, D, BV, C, FAST, OPERAND, PRECISION, STAGES
    )  # fmt: skip
    if states is not None:  # noqa: SIM102 (known when compiling)
        if last != 0:
            slot = tl.load(slots + sequence)
            tl.store(state_pointers(states, block, slot, head, H, D, BV), state.to(states.dtype.element_ty))
