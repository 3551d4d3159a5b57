"""Attention to some keys merged with attention to others, by the logs of their softmaxes' denominators.

A partial attention is three values, in base 2: `acc`, the sum of its values by weights relative to the largest;
`highest`, the logarithm of that largest weight; and `total`, the sum of the relative weights. Where `acc` is a mean and
`highest` the logarithm of the whole denominator, `total` is 1.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_ROWS = 32  # of a program
_LOG2_E, LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)


@triton.jit
def merged(highest, total, other_highest, other_total):
    """`highest` and `total` of two partial attentions as one, and the factors of either's `acc` in the sum of both."""
    higher = tl.maximum(highest, other_highest)
    kept, added = tl.exp2(highest - higher), tl.exp2(other_highest - higher)
    return higher, total * kept + other_total * added, kept, added


@triton.jit(do_not_specialize=["tokens"])
def _merge(acc, acc_logs, part, logs, out, tokens,
           acc_token, acc_head, acc_logs_head, part_token, part_head, logs_head,
           D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
           FIRST: tl.constexpr, LAST: tl.constexpr):  # fmt: skip
    """FIRST: there are no parts before. LAST: the mean goes to `out` [tokens, heads, d], and not to `acc`."""
    head, token = tl.program_id(1).to(tl.int64), tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDE)
    real = token < tokens
    inside = real[:, None] & (d < D)[None, :]
    token = token.to(tl.int64)
    at = acc + head * acc_head + token[:, None] * acc_token + d[None, :]
    row = acc_logs + head * acc_logs_head + token
    mean = tl.load(part + token[:, None] * part_token + head * part_head + d[None, :], mask=inside).to(tl.float32)
    log = tl.load(logs + head * logs_head + token, mask=real, other=0.0) * _LOG2_E
    if not FIRST:
        before = tl.load(row, mask=real, other=0.0) * _LOG2_E
        log, total, kept, added = merged(before, 1.0, log, 1.0)
        mean = tl.load(at, mask=inside, other=0.0) * (kept / total)[:, None] + mean * (added / total)[:, None]
        log += tl.log2(total)
    if LAST:
        to = (token[:, None] * tl.num_programs(1) + head) * D + d[None, :]
        tl.store(out + to, mean.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(at, mean, mask=inside)
        tl.store(row, log * LN_2, mask=real)


def merge(
    acc: Tensor, acc_logs: Tensor, part: Tensor, logs: Tensor, out: Tensor | None = None, *, first: bool = False
) -> None:
    """Merge a partial attention with those before it, in place.

    Args:
        acc: float32 [tokens, heads, d], the mean so far; in whatever layout but for the last dimension's, as `part`.
        acc_logs: float32 [heads, tokens], the natural logs of its softmax's denominators.
        part: [tokens, heads, d].
        logs: float32 [heads, tokens].
        out: [tokens, heads, d], contiguous; the last merge writes to it, and not to `acc` and its logs.
        first: nothing is in `acc` yet.
    """
    tokens, heads, d = part.shape
    if part.stride(2) != 1:
        part = part.contiguous()
    if logs.stride(1) != 1:
        logs = logs.contiguous()
    _merge[(triton.cdiv(tokens, _ROWS), heads)](
        acc, acc_logs, part, logs, acc if out is None else out, tokens,
        acc.stride(0), acc.stride(1), acc_logs.stride(0), part.stride(0), part.stride(1), logs.stride(0),
        D=d, WIDE=triton.next_power_of_2(d), ROWS=_ROWS, FIRST=first, LAST=out is not None, num_warps=4,
    )  # fmt: skip
