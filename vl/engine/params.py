"""What a caller says of how a request is continued, checked."""

from __future__ import annotations

import enum
import math
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from numbers import Real
from typing import Any

from preprocessing import Processor
from preprocessing.tools import FUNCTION_CALL
from preprocessing.unicode import well_formed
from vl.engine.calls import Calls, is_strict
from vl.engine.config import shown, whole
from vl.engine.response_format import checked_format
from vl.engine.splitmix import BITS, mixed, signed
from vl.errors import InputError

MOST_TOP_LOGPROBS = 20
_HOTTEST = 1e6
_SMALLEST = sys.float_info.min * sys.float_info.epsilon  # the least float above 0
_LARGEST = 2**63 - 1
_MOST_STOPS, _LONGEST_STOP = 64, 1000
_MOST_ANSWERS = 128


class Draw(enum.IntEnum):
    """What a batch of rows needs: only argmax, noise too, or also the sort behind top-k and top-p."""

    GREEDY = 0
    PLAIN = 1
    FILTERED = 2


@dataclass(frozen=True)
class SamplingParams:
    """How one request is continued.

    Whole numbers may be of any integer type (NumPy's too), and become `int`; 50.0, "50" and True are refused.

    What is done to the logits comes in this order: `repetition_penalty`, `frequency_penalty` and `presence_penalty`,
    `logit_bias`, `response_format`, `temperature`, `top_k`, `top_p`, `min_p`.

    Attributes:
        max_new_tokens: tokens generated at most, the end token included.
        temperature: 0 is greedy; otherwise the logits are divided by it. At most 1e6.
        top_p: keep the most likely tokens whose probabilities first sum to `top_p`.
        top_k: keep the `top_k` most likely tokens; 0 keeps all. Applied before `top_p`, as transformers does.
        seed: makes a sampled continuation reproducible, whatever else shares its batch. Below 2^64; None draws one.
        stop: the text ends before the first of these strings; a single string is taken as one, None as none. At most
            64 strings of 1000 characters; lone surrogates in them become U+FFFD.
        priority: when it runs: before those with a lower one, and in their place, which does not change an answer.
        min_p: keep the tokens that are at least `min_p` times as likely as the likeliest; 0 keeps all.
        repetition_penalty: the logits of all tokens in the prompt and the answer so far are divided by it where they
            are positive, and multiplied where not, as transformers does; 1 is none. 0.01 to 100.
        presence_penalty: is taken from the logits of all tokens in the answer so far. -2 to 2, as OpenAI has it.
        frequency_penalty: the same, times how often a token is there.
        logit_bias: by token id, what is added to its logit, -100 to 100; None for nothing.
        logprobs: whether `Generation.logprobs` says how likely each token was: to the model itself, before all that
            is said here.
        top_logprobs: how many of the likeliest tokens in each place it names besides, at most 20.
        response_format: what the answer is held to, as OpenAI has it: `{"type": "json_object"}`, or `{"type":
            "json_schema", "json_schema": {"schema": {...}}}`, always strictly; `{"type": "text"}` and None are any
            text. Beyond that `{"type": "regex", "pattern": ...}`, in the syntax of Rust's crate regex, and `{"type":
            "grammar", "grammar": ...}`, of Lark as llguidance has it. It ends with "stop" where the form is complete,
            and is cut within it by `max_new_tokens` or `stop`. Needs the extra `serve`.
        calls: of functions that the answer may be instead, or has to be; None: as it likes, but not where it is held to
            a form. `generate(tools=...)` and the server give it. Needs the extra `serve`.
        n: answers to each conversation, whose prompt is read once for all of them; at most 128. With a seed, answer i
            is that of `seed + i` alone.

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
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    logprobs: bool = False
    top_logprobs: int = 0
    n: int = 1
    response_format: Mapping[str, Any] | None = field(default=None, hash=False)
    calls: Calls | None = None

    def __post_init__(self) -> None:
        top = f"0 to {MOST_TOP_LOGPROBS}"
        values: dict[str, Any] = {
            "max_new_tokens": _whole("max_new_tokens", self.max_new_tokens, 1, _LARGEST, "at least 1"),
            "temperature": _real("temperature", self.temperature, 0, _HOTTEST, "0 (greedy) or more, at most 1e6"),
            "top_p": _real("top_p", self.top_p, _SMALLEST, 1, "above 0 and at most 1"),
            "top_k": _whole("top_k", self.top_k, 0, 2**31 - 1, "0 (off) or more, below 2^31"),
            "stop": _stop_strings(self.stop),
            "priority": _whole("priority", self.priority, -(2**31), 2**31 - 1, "of 32 bits"),
            "min_p": _real("min_p", self.min_p, 0, 1, "0 (off) to 1"),
            "repetition_penalty": _real("repetition_penalty", self.repetition_penalty, 0.01, 100, "0.01 to 100"),
            "presence_penalty": _real("presence_penalty", self.presence_penalty, -2, 2, "-2 to 2"),
            "frequency_penalty": _real("frequency_penalty", self.frequency_penalty, -2, 2, "-2 to 2"),
            "logit_bias": _biases(self.logit_bias),
            "top_logprobs": _whole("top_logprobs", self.top_logprobs, 0, MOST_TOP_LOGPROBS, top),
            "response_format": checked_format(self.response_format),
            "n": _whole("n", self.n, 1, _MOST_ANSWERS, f"1 to {_MOST_ANSWERS}"),
        }
        if self.seed is not None:
            values["seed"] = _whole("seed", self.seed, 0, BITS, "0 or more, below 2^64")
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if not isinstance(self.logprobs, bool):
            raise InputError(f"logprobs must be True or False, not {shown(self.logprobs)}")
        if not isinstance(self.calls, Calls | None):
            raise InputError(f"calls must be vl.engine.calls.Calls, not {shown(self.calls)}")
        if self.top_logprobs and not self.logprobs:
            raise InputError("top_logprobs must be 0 without logprobs: set logprobs=True too")

    @classmethod
    def of(cls, sampling: Mapping[str, Any]) -> SamplingParams:
        """From keyword arguments. Raises InputError, also for a name that is none of the above."""
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(sampling) - set(names))
        if unknown:
            raise InputError(f"unknown sampling argument {', '.join(unknown)}: there are {', '.join(names)}")
        return cls(**sampling)

    def offering(self, tools: Sequence[Mapping[str, Any]] | None, processor: Processor) -> SamplingParams:
        """The same where functions may be called: with `calls`, if answers or arguments are held to a form.

        Raises InputError naming the tool that has no name, or no schema that arguments could be held to.
        """
        token = processor.tokenizer.token_id(FUNCTION_CALL)
        if not tools or token is None or self.calls is not None:
            return self
        if self.response_format is None and not any(map(is_strict, tools)):
            return self
        return replace(self, calls=Calls.of(tools, token, markers=processor.reasoning))

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop`, which is a tuple by now."""
        return tuple(self.stop or ())

    @property
    def draw(self) -> Draw:
        if self.temperature == 0:
            return Draw.GREEDY
        return Draw.FILTERED if self.top_k or self.top_p < 1 else Draw.PLAIN

    @property
    def penalises(self) -> bool:
        """Whether what a token's logit becomes depends on the tokens before it."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def adjusts(self) -> bool:
        """Whether logits become others before they are drawn from."""
        return self.penalises or bool(self.logit_bias)

    @property
    def apart(self) -> bool:
        """Whether its tokens are chosen outside of the recorded step."""
        return self.adjusts or self.logprobs or self.response_format is not None or self.calls is not None

    def one(self, index: int) -> SamplingParams:
        """Those of one of the `n` answers."""
        return replace(self, n=1, seed=None if self.seed is None else (self.seed + index) & BITS)

    def key(self) -> int:
        """int64 that all of a request's noise comes from; another one at every call if there is no seed."""
        return signed(mixed(secrets.randbits(64) if self.seed is None else self.seed))


def check_single(sampling: Mapping[str, Any]) -> None:
    """For who returns one answer: raises InputError if keyword arguments ask for several."""
    if (whole(sampling.get("n")) or 1) > 1:
        raise InputError("n must be 1 here, where one answer is returned: generate returns all of them")


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


def _biases(biases: object) -> dict[int, float] | None:
    """`logit_bias` in plain numbers. Raises InputError."""
    if biases is None:
        return None
    if not isinstance(biases, Mapping):
        raise InputError(f"logit_bias must be a mapping of token ids to numbers, not {shown(biases)}")
    return {
        _whole("logit_bias token ids", token, 0, 2**31 - 1, "0 or more, below 2^31"): _real(
            "logit_bias values", bias, -100, 100, "-100 to 100"
        )
        for token, bias in biases.items()
    }


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
