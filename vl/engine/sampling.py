"""From next-token logits to the next token.

A drawn token is the argmax of scaled logits plus Gumbel noise, which draws from their softmax without making one. The
noise is a hash of the request's seed, the position and the token, so a row draws the same whatever shares its batch,
and a captured graph draws anew at every replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vl.engine.params import Draw, SamplingParams
from vl.engine.splitmix import BITS, FIRST, SECOND, STEP, signed

ALL = 2**62  # a top_k that keeps every token
_COLDEST = 1e-4  # colder, the noise decides no more than at this temperature, and quotients could overflow


@dataclass(frozen=True)
class SamplingRows:
    """What `sample` knows of each row, on the device; `[n]` each.

    Attributes:
        keys: int64, `SamplingParams.key` of the row's request.
        positions: int64, where in its sequence the token that is chosen will stand.
        top_k: int64, at least 1; `ALL` for no limit.
        temperature, top_p, min_p: float.
    """

    keys: Tensor
    positions: Tensor
    top_k: Tensor
    temperature: Tensor
    top_p: Tensor
    min_p: Tensor

    @classmethod
    def of(
        cls, params: Sequence[SamplingParams], keys: Sequence[int], positions: Sequence[int], like: Tensor
    ) -> SamplingRows:
        """Rows on the device of `like`, floats in its dtype."""
        whole = sent([keys, positions, [p.top_k or ALL for p in params]], torch.int64, like.device)
        real = sent([[p.temperature, p.top_p, p.min_p] for p in params], like.dtype, like.device).T
        return cls(*whole, *real)


def sent(numbers: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of the host on a device, which may be at work: it is not waited for."""
    held = torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda")
    return held.to(device, non_blocking=True)


def sample(logits: Tensor, rows: SamplingRows, draw: Draw) -> Tensor:
    """Pick one token per row, without waiting for the device.

    Args:
        logits: float32 `[n, vocab]`.
        draw: the most that any row needs; a row's token does not depend on what the others need.

    Returns:
        int64 `[n]`.
    """
    if draw == Draw.GREEDY:
        return logits.argmax(dim=-1)
    drawn = (rows.temperature > 0)[:, None]
    scaled = logits / rows.temperature.clamp(min=_COLDEST)[:, None]
    scores = scaled + gumbel(rows.keys, rows.positions, logits.shape[-1])
    keep = likely(scaled, rows.min_p)
    if draw == Draw.FILTERED:
        keep &= kept(scaled, rows.top_k, rows.top_p)
    scores = torch.where(keep, scores, -torch.inf)
    return torch.where(drawn, scores, logits).argmax(dim=-1)


def likely(scaled: Tensor, min_p: Tensor) -> Tensor:
    """Which tokens are likely enough beside the likeliest: shapes as of `kept`.

    That one is among those that top-k and top-p keep: so it is the same whether they come before this or after it.
    """
    return scaled >= scaled.amax(dim=-1, keepdim=True) + min_p.log()[:, None]


def kept(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Which tokens may be drawn: logits after temperature `[n, vocab]`, `[n]`, `[n]` -> bool `[n, vocab]`."""
    falling, order = scaled.sort(dim=-1, descending=True, stable=True)
    among = torch.arange(scaled.shape[-1], device=scaled.device) < top_k[:, None]
    probs = torch.where(among, falling, -torch.inf).softmax(dim=-1)
    # A token is kept while the mass before it is short of top_p, so the most likely one always is.
    # So it is where a float holds no `top_p` as small, and rounding may fill the sum up before the last token.
    short = probs.cumsum(dim=-1) - probs < top_p.clamp(min=torch.finfo(top_p.dtype).tiny)[:, None]
    keep = among & (short | (top_p >= 1)[:, None])
    return torch.empty_like(keep).scatter_(-1, order, keep)


def gumbel(keys: Tensor, positions: Tensor, vocab: int) -> Tensor:
    """Standard Gumbel noise of every token: float32 `[n, vocab]` from int64 `[n]` and `[n]`.

    The same SplitMix64 on every device: one stream per row, begun at the hash of its key and position.
    """
    stream = _hash(keys + positions * signed(STEP))[:, None]
    tokens = torch.arange(vocab, device=keys.device)
    bits = _shift(_hash(stream + tokens * signed(STEP)), 11)  # 53 of them
    # Fine-grained near 0, which is where the likely winners are; at most 1 - 2^-24, so that the logarithm is finite.
    uniform = ((bits.to(torch.float32) + 0.5) * 2.0**-53).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _hash(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, which wraps around as unsigned numbers do."""
    x = (x ^ _shift(x, 30)) * signed(FIRST)
    x = (x ^ _shift(x, 27)) * signed(SECOND)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    """Right shift that moves zeros in, also above a negative number's sign."""
    return (x >> by) & (BITS >> by)
