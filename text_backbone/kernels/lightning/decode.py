"""Decode kernel of lightning attention: one token a sequence, one launch."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from text_backbone.kernels.lightning.forward import silu
from text_backbone.kernels.overlap import early, wait
from text_backbone.packed import Packed


class Columns(NamedTuple):
    """Value columns of a program, and its warps; passing: what it stores is the first to leave the L2 cache."""

    values: int
    warps: int
    passing: bool = False


# Bytes in flight make the speed: few (sequence, head) pairs are split over more programs and threads. A program of 32
# columns reads whole 128-byte lines; 16 leave half of every line to its neighbour.
DECODE = (  # programs of `values` columns that there have to be at least, for the first entry to serve
    (4096, Columns(64, 4)),
    (1024, Columns(32, 8, passing=True)),
    (0, Columns(32, 8)),
)
CANDIDATES = [
    Columns(16, 2),
    Columns(16, 4),
    Columns(32, 4),
    Columns(32, 8),
    Columns(32, 8, passing=True),
    Columns(32, 16),
    Columns(64, 4),
    Columns(64, 4, passing=True),
    Columns(64, 8),
    Columns(128, 8),
]


@triton.jit
def decode_kernel(
    qkv, out, states, slots, slopes,
    H: tl.constexpr, D: tl.constexpr, BV: tl.constexpr, PASSING: tl.constexpr, FAST: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """S = exp(-s) S + k^T v in place in states [., H, D, D] at the sequence's slot; out [n, H * D] = q S."""
    wait(EARLY)
    BLOCKS: tl.constexpr = D // BV
    pid = tl.program_id(0)
    block, head, sequence = pid % BLOCKS, pid // BLOCKS % H, (pid // (H * BLOCKS)).to(tl.int64)
    keys, values = tl.arange(0, D), block * BV + tl.arange(0, BV)
    pointers = states + (tl.load(slots + sequence) * H + head) * (D * D) + keys[:, None] * D + values[None, :]
    state = tl.load(pointers).to(tl.float32)
    x = qkv + (sequence * H + head) * (3 * D)
    q, k = silu(tl.load(x + keys), FAST), silu(tl.load(x + D + keys), FAST)
    v = silu(tl.load(x + 2 * D + values), FAST)
    state = state * tl.exp(-tl.load(slopes + head)) + k[:, None] * v[None, :]
    tl.store(pointers, state.to(states.dtype.element_ty), cache_modifier=".cs" if PASSING else "")
    o = tl.sum(q[:, None] * state, axis=0)
    tl.store(out + (sequence * H + head) * D + values, o.to(out.dtype.element_ty))


def columns_for(width: int) -> Columns:
    """The table's entry for so many value columns: of all heads of all sequences."""
    return next(columns for least, columns in DECODE if width >= least * columns.values)


def decode(qkv: Tensor, slopes: Tensor, packed: Packed, states: Tensor, columns: Columns | None = None) -> Tensor:
    """Output [n, heads * d] of one token for each of n sequences; `states` is updated in place at `packed.slots`.

    Nothing but shapes comes from the host, so that a CUDA graph can replay it.
    """
    heads, d = len(slopes), states.shape[-1]
    pairs = qkv.shape[0] * heads
    columns = columns or columns_for(pairs * d)
    values = min(columns.values, d)
    out = qkv.new_empty(qkv.shape[0], heads * d)
    decode_kernel[(pairs * (d // values),)](
        qkv, out, states, packed.slots, slopes,
        H=heads, D=d, BV=values, PASSING=columns.passing, FAST=False, num_warps=columns.warps, **early(qkv.device),
    )  # fmt: skip
    return out
