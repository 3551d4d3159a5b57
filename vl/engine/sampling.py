"""From next-token logits to the next token.

A drawn token is the argmax of scaled logits plus Gumbel noise, which draws from their softmax without making one. The
noise is a hash of the request's seed, the position and the token, so a row draws the same whatever shares its batch,
and a captured graph draws anew at every replay.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vl.errors import InputError

ALL = 2**62  # a top_k that keeps every token
_COLDEST = 1e-4  # colder, the noise decides no more than at this temperature, and quotients could overflow
_BITS = 2**64 - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of SplitMix64


class Draw(enum.IntEnum):
    """What a batch of rows needs: only argmax, noise too, or also the sort behind top-k and top-p."""

    GREEDY = 0
    PLAIN = 1
    FILTERED = 2


@dataclass(frozen=True)
class SamplingParams:
    """How one request is continued.

    Attributes:
        max_new_tokens: tokens generated at most, the end token included.
        temperature: 0 is greedy; otherwise the logits are divided by it.
        top_p: keep the most likely tokens whose probabilities first sum to `top_p`.
        top_k: keep the `top_k` most likely tokens; 0 keeps all. Applied before `top_p`, as transformers does.
        seed: makes a sampled continuation reproducible, whatever else shares its batch.
        stop: the text ends before the first of these strings; a single string is taken as one.

    Raises:
        InputError: if a value is out of its range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        checks = {
            "max_new_tokens must be at least 1": self.max_new_tokens >= 1,
            "temperature must be 0 (greedy) or more": self.temperature >= 0,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "top_k must be 0 (off) or more": self.top_k >= 0,
            "seed must be 0 or more": self.seed is None or self.seed >= 0,
            "stop strings must be non-empty strings": all(isinstance(s, str) and s for s in self.stop),
        }
        for rule, holds in checks.items():
            if not holds:
                raise InputError(f"{rule}, not {getattr(self, rule.split()[0])!r}")

    @property
    def draw(self) -> Draw:
        if self.temperature == 0:
            return Draw.GREEDY
        return Draw.FILTERED if self.top_k or self.top_p < 1 else Draw.PLAIN

    def key(self) -> int:
        """int64 that all of a request's noise comes from; another one at every call if there is no seed."""
        return _signed(_hashed(secrets.randbits(64) if self.seed is None else self.seed & _BITS))


@dataclass(frozen=True)
class SamplingRows:
    """What `sample` knows of each row, on the device; `[n]` each.

    Attributes:
        keys: int64, `SamplingParams.key` of the row's request.
        positions: int64, where in its sequence the token that is chosen will stand.
        top_k: int64, at least 1; `ALL` for no limit.
        temperature, top_p: float.
    """

    keys: Tensor
    positions: Tensor
    top_k: Tensor
    temperature: Tensor
    top_p: Tensor

    @classmethod
    def of(
        cls, params: Sequence[SamplingParams], keys: Sequence[int], positions: Sequence[int], like: Tensor
    ) -> SamplingRows:
        """Rows on the device of `like`, floats in its dtype."""
        whole = torch.tensor([keys, positions, [p.top_k or ALL for p in params]], device=like.device)
        real = like.new_tensor([[p.temperature for p in params], [p.top_p for p in params]])
        return cls(*whole, *real)


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
    if draw == Draw.FILTERED:
        scores = torch.where(kept(scaled, rows.top_k, rows.top_p), scores, -torch.inf)
    return torch.where(drawn, scores, logits).argmax(dim=-1)


def kept(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Which tokens may be drawn: logits after temperature `[n, vocab]`, `[n]`, `[n]` -> bool `[n, vocab]`."""
    falling, order = scaled.sort(dim=-1, descending=True, stable=True)
    among = torch.arange(scaled.shape[-1], device=scaled.device) < top_k[:, None]
    probs = torch.where(among, falling, -torch.inf).softmax(dim=-1)
    # A token is kept while the mass before it is short of top_p, so the most likely one always is.
    short = probs.cumsum(dim=-1) - probs < top_p[:, None]
    keep = among & (short | (top_p >= 1)[:, None])  # rounding may fill the sum up before the last token
    return torch.empty_like(keep).scatter_(-1, order, keep)


def gumbel(keys: Tensor, positions: Tensor, vocab: int) -> Tensor:
    """Standard Gumbel noise of every token: float32 `[n, vocab]` from int64 `[n]` and `[n]`.

    The same SplitMix64 on every device: one stream per row, begun at the hash of its key and position.
    """
    stream = _hash(keys + positions * _signed(_STEP))[:, None]
    tokens = torch.arange(vocab, device=keys.device)
    bits = _shift(_hash(stream + tokens * _signed(_STEP)), 11)  # 53 of them
    # Fine-grained near 0, which is where the likely winners are; at most 1 - 2^-24, so that the logarithm is finite.
    uniform = ((bits.to(torch.float32) + 0.5) * 2.0**-53).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _hash(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, which wraps around as unsigned numbers do."""
    x = (x ^ _shift(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift(x, 27)) * _signed(_SECOND)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    """Right shift that moves zeros in, also above a negative number's sign."""
    return (x >> by) & (_BITS >> by)


def _hashed(x: int) -> int:
    """`_hash` of one number on the host, unsigned."""
    x = (x ^ x >> 30) * _FIRST & _BITS
    x = (x ^ x >> 27) * _SECOND & _BITS
    return x ^ x >> 31


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x
