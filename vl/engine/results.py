"""What comes out of the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from preprocessing import ToolCall

FinishReason = Literal["stop", "length"]


@dataclass
class Usage:
    """Token counts.

    `image_tokens` are part of `prompt_tokens`; `completion_tokens` counts the end token. `cached_tokens` are the part
    of the prompt that was not read, because an earlier one began the same way.
    """

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass
class Timings:
    """Wall-clock seconds of one request; work shared with other requests of its batch counts in full for each."""

    preprocess: float = 0.0
    vision: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


@dataclass
class Generation:
    """A finished continuation.

    `text` leaves out special tokens and whatever follows a stop string; `token_ids` is all that was generated, the end
    token included. `finish_reason` is "stop" (end token or stop string) or "length" (`max_new_tokens`). `tool_calls`
    are the calls of functions in it, which `text` has too, without the special token before them.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    tool_calls: list[ToolCall] = field(default_factory=list)
