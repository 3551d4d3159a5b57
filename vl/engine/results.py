"""What comes out of the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from preprocessing import ToolCall

FinishReason = Literal["stop", "length"]


@dataclass
class Usage:
    """Token counts.

    `image_tokens` are part of `prompt_tokens`; `completion_tokens` counts the end token. `cached_tokens` are the part
    of the prompt that was not read, because an earlier one began the same way. `reasoning_tokens` are the part of the
    completion up to the token that ends what was thought.
    """

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass
class Timings:
    """Wall-clock seconds of one request; work shared with other requests of its batch counts in full for each."""

    preprocess: float = 0.0
    vision: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


Spell = Callable[[int], bytes]
"""Gives what a token adds to a text."""


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the model itself held a token to be.

    Attributes:
        token_id: the token.
        token: its text; bytes that are no whole characters are U+FFFD in it.
        bytes: of its text in UTF-8; those of several tokens may make up one character.
        logprob: natural logarithm of its probability before penalties, biases, temperature and filters.
        top: the likeliest tokens in its place, the likeliest first.
    """

    token_id: int
    token: str
    bytes: list[int]
    logprob: float
    top: list[TokenLogprob] = field(default_factory=list)

    @classmethod
    def of(cls, found: Sequence[tuple[int, float]], spell: Spell) -> TokenLogprob:
        """Of a token and the likeliest ones in its place: ids and logarithms."""
        (token_id, logprob), *top = found
        spelt = spell(token_id)
        likeliest = [cls.of([each], spell) for each in top]
        return cls(token_id, spelt.decode("utf-8", "replace"), list(spelt), logprob, likeliest)


@dataclass
class Generation:
    """A finished continuation.

    `text` leaves out special tokens and whatever follows a stop string; `reasoning` is what a model that thinks before
    it answers wrote between its tokens for that, which `text` has nothing of. `token_ids` is all that was generated,
    the end token included. `finish_reason` is "stop" (end token or stop string) or "length" (`max_new_tokens`).
    `tool_calls` are the calls of functions in it, which `text` has too, without the special token before them.
    `logprobs` has one entry for each of `token_ids`, if they were asked for. `index`: which of a conversation's `n`
    answers it is.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    index: int = 0
    reasoning: str = ""
