"""From next-token logits to the next token.

A drawn token is the argmax of scaled logits plus Gumbel noise, which draws from their softmax without making one. The
noise is a hash of the request's seed, the position and the token, so a row draws the same whatever shares its batch,
and a captured graph draws anew at every replay.
"""

from __future__ import annotations

import enum
import math
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import islice
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from preprocessing.unicode import well_formed
from vl.engine.config import shown, whole
from vl.errors import InputError

ALL = 2**62  # a top_k that keeps every token
_COLDEST = 1e-4  # colder, the noise decides no more than at this temperature, and quotients could overflow
_HOTTEST = 1e6
_SMALLEST = sys.float_info.min * sys.float_info.epsilon  # the least float above 0
_LARGEST = 2**63 - 1
_MOST_STOPS, _LONGEST_STOP = 64, 1000
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

    Whole numbers may be of any integer type (NumPy's too), and become `int`; 50.0, "50" and True are refused.

    Attributes:
        max_new_tokens: tokens generated at most, the end token included.
        temperature: 0 is greedy; otherwise the logits are divided by it. At most 1e6.
        top_p: keep the most likely tokens whose probabilities first sum to `top_p`.
        top_k: keep the `top_k` most likely tokens; 0 keeps all. Applied before `top_p`, as transformers does.
        seed: makes a sampled continuation reproducible, whatever else shares its batch. Below 2^64; None draws one.
        stop: the text ends before the first of these strings; a single string is taken as one, None as none. At most
            64 strings of 1000 characters; lone surrogates in them become U+FFFD.
        priority: when it runs: before those with a lower one, and in their place, which does not change an answer.

    Raises:
        InputError: if a value is not of its type or out of its range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: str | Sequence[str] | None = ()
    priority: int = 0

    def __post_init__(self) -> None:
        values: dict[str, Any] = {
            "max_new_tokens": _whole("max_new_tokens", self.max_new_tokens, 1, _LARGEST, "at least 1"),
            "temperature": _real("temperature", self.temperature, 0, _HOTTEST, "0 (greedy) or more, at most 1e6"),
            "top_p": _real("top_p", self.top_p, _SMALLEST, 1, "above 0 and at most 1"),
            "top_k": _whole("top_k", self.top_k, 0, 2**31 - 1, "0 (off) or more, below 2^31"),
            "stop": _stop_strings(self.stop),
            "priority": _whole("priority", self.priority, -(2**31), 2**31 - 1, "of 32 bits"),
        }
        if self.seed is not None:
            values["seed"] = _whole("seed", self.seed, 0, _BITS, "0 or more, below 2^64")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, sampling: Mapping[str, Any]) -> SamplingParams:
        """From keyword arguments. Raises InputError, also for a name that is none of the above."""
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(sampling) - set(names))
        if unknown:
            raise InputError(f"unknown sampling argument {', '.join(unknown)}: there are {', '.join(names)}")
        return cls(**sampling)

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop`, which is a tuple by now."""
        return tuple(self.stop or ())

    @property
    def draw(self) -> Draw:
        if self.temperature == 0:
            return Draw.GREEDY
        return Draw.FILTERED if self.top_k or self.top_p < 1 else Draw.PLAIN

    def key(self) -> int:
        """int64 that all of a request's noise comes from; another one at every call if there is no seed."""
        return _signed(_hashed(secrets.randbits(64) if self.seed is None else self.seed))


def _whole(name: str, value: object, least: int, most: int, rule: str) -> int:
    found = whole(value)
    if found is None or not least <= found <= most:
        raise InputError(f"{name} must be a whole number, {rule}, not {shown(value)}")
    return found


def _real(name: str, value: object, least: float, most: float, rule: str) -> float:
    number = math.nan  # which is in no range
    if isinstance(value, Real) and not isinstance(value, bool):
        # Compared as a float of 64 bits: a bound may be infinite in the value's own type, such as float16.
        with suppress(OverflowError):
            number = float(value)
    if not least <= number <= most:
        raise InputError(f"{name} must be a number, {rule}, not {shown(value)}")
    return number


def _stop_strings(stop: object) -> tuple[str, ...]:
    """`stop` as a tuple. Raises InputError."""
    if stop is None:
        return ()
    given: object = (stop,) if isinstance(stop, str) else stop
    if not isinstance(given, Iterable) or isinstance(given, bytes | Mapping):
        raise InputError(f"stop must be a string or a sequence of strings, not {type(stop).__name__}")
    strings = tuple(islice(given, _MOST_STOPS + 1))
    if len(strings) > _MOST_STOPS:
        raise InputError(f"stop must be at most {_MOST_STOPS} strings: give fewer")
    for string in strings:
        if not isinstance(string, str) or not string:
            raise InputError(f"stop strings must be non-empty strings, not {shown(string)}")
        if len(string) > _LONGEST_STOP:
            raise InputError(f"stop strings must be at most {_LONGEST_STOP} characters, not {len(string):,}")
    return tuple(map(well_formed, strings))


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
    # So it is where a float holds no `top_p` as small, and rounding may fill the sum up before the last token.
    short = probs.cumsum(dim=-1) - probs < top_p.clamp(min=torch.finfo(top_p.dtype).tiny)[:, None]
    keep = among & (short | (top_p >= 1)[:, None])
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
