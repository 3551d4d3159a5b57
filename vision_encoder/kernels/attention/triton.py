"""`reference.attention` as a Triton kernel: a program takes some queries of one head of one tile."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

# Three or four programs to a multiprocessor: one multiplies while another takes exponentials.
_QUERIES, _KEYS, _WARPS, _STAGES = 64, 64, 4, 3


@triton.jit
def _attended(q, k, v, inside, top, total, values, scale, MASKED: tl.constexpr):
    """The running softmax a tile of keys further: the greatest score, the sum of weights and the sum of values."""
    scores = tl.dot(q, k.T)
    if MASKED:
        scores = tl.where(inside[None, :], scores, float("-inf"))
    new = tl.maximum(top, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - new[:, None])
    decay = tl.exp2(top - new)
    values = tl.dot(weights.to(v.dtype), v, values * decay[:, None])
    return new, total * decay + tl.sum(weights, 1), values


@triton.jit
def _attention(qkv, out, scale, HEADS: tl.constexpr, D: tl.constexpr, TOKENS: tl.constexpr, POWER: tl.constexpr,
               QUERIES: tl.constexpr, KEYS: tl.constexpr, REST: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    HIDDEN: tl.constexpr = HEADS * D
    PROGRAMS: tl.constexpr = (TOKENS + QUERIES - 1) // QUERIES  # of a head
    WHOLE: tl.constexpr = TOKENS // KEYS * KEYS  # keys in tiles that need no mask
    program = tl.program_id(0)
    head = program // PROGRAMS % HEADS
    start = (program // PROGRAMS // HEADS).to(tl.int64) * TOKENS  # the tile's first row
    rows = qkv + start * (3 * HIDDEN) + head * D + tl.arange(0, D)[None, :]
    query = program % PROGRAMS * QUERIES + tl.arange(0, QUERIES)
    asked = (query < TOKENS)[:, None]
    q = tl.load(rows + query[:, None] * (3 * HIDDEN), mask=asked, other=0.0)
    # Multiplied by a power of two, which is exact: an operand that is computed stays in registers.
    q = (q.to(tl.float32) * POWER).to(q.dtype)
    rest = WHOLE + tl.arange(0, REST)
    inside = rest < TOKENS
    key = rows + rest[:, None] * (3 * HIDDEN) + HIDDEN
    last_k = tl.load(key, mask=inside[:, None], other=0.0)  # asked for early, needed late
    last_v = tl.load(key + HIDDEN, mask=inside[:, None], other=0.0)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    values = tl.zeros((QUERIES, D), tl.float32)
    key = rows + tl.arange(0, KEYS)[:, None] * (3 * HIDDEN) + HIDDEN
    for first in tl.range(0, WHOLE, KEYS, num_stages=STAGES):
        k = tl.load(key + first * (3 * HIDDEN))
        v = tl.load(key + (first * (3 * HIDDEN) + HIDDEN))
        top, total, values = _attended(q, k, v, inside, top, total, values, scale, False)
    if WHOLE < TOKENS:
        top, total, values = _attended(q, last_k, last_v, inside, top, total, values, scale, True)
    values = (values * (1.0 / total)[:, None]).to(out.dtype.element_ty)
    place = out + start * HIDDEN + head * D + tl.arange(0, D)[None, :]
    tl.store(place + query[:, None] * HIDDEN, values, mask=asked)


def attention(qkv: Tensor, tokens: int, heads: int) -> Tensor:
    """Same as `reference.attention`."""
    hidden = qkv.shape[1] // 3
    d = hidden // heads
    out = qkv.new_empty(len(qkv), hidden)
    power = 2.0 ** -(d.bit_length() // 2)
    grid = (len(qkv) // tokens * heads * triton.cdiv(tokens, _QUERIES),)
    _attention[grid](
        qkv.contiguous(),
        out,
        d**-0.5 * math.log2(math.e) / power,
        HEADS=heads,
        D=d,
        TOKENS=tokens,
        POWER=power,
        QUERIES=_QUERIES,
        KEYS=_KEYS,
        REST=max(16, triton.next_power_of_2(tokens % _KEYS)),
        STAGES=_STAGES,
        num_warps=_WARPS,
        num_stages=_STAGES,
    )
    return out
