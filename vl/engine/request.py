"""One request on its way through the engine, and what comes out of it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from preprocessing import Inputs, ToolCall
from vl.engine.sampling import SamplingParams

FinishReason = Literal["stop", "length"]


@dataclass
class Usage:
    """Token counts. `image_tokens` are part of `prompt_tokens`; `completion_tokens` counts the end token."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int


@dataclass
class Timings:
    """Wall-clock seconds of one request; work shared with batch mates counts in full for each of them."""

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


class TextStream(Protocol):
    """Incremental detokeniser."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class StopScanner:
    """Releases text as soon as it cannot be the beginning of a stop string any more."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Add `piece`; returns the text that is safe to show and whether a stop string was met."""
        self._held += piece
        hits = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if hits:
            return self._release(min(hits)), True
        return self._release(len(self._held) - self._undecided()), False

    def flush(self) -> str:
        return self._release(len(self._held))

    def _undecided(self) -> int:
        """Length of the longest tail of the held text that begins a stop string."""
        return max(
            (
                n
                for stop in self._stop
                for n in range(1, min(len(stop), len(self._held) + 1))
                if self._held.endswith(stop[:n])
            ),
            default=0,
        )

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text


@dataclass(eq=False)
class Request:
    """A prompt, its cache slot while it runs, and the text it has produced so far."""

    inputs: Inputs
    params: SamplingParams
    stream: TextStream
    key: int  # of its sampling noise
    timings: Timings = field(default_factory=Timings)
    slot: int | None = None
    embeds: Tensor | None = None  # [prompt, hidden] while any of it waits for prefill
    computed: int = 0  # tokens in the cache
    token_ids: list[int] = field(default_factory=list)
    pieces: deque[str] = field(default_factory=deque)  # text not yet taken by a consumer
    text: str = ""
    finish_reason: FinishReason | None = None
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self._scanner = StopScanner(self.params.stops)
        self._since = 0.0

    @property
    def prompt_tokens(self) -> int:
        return self.inputs.input_ids.numel()

    @property
    def done(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def prefilling(self) -> bool:
        return self.computed < self.prompt_tokens

    def start_prefill(self) -> None:
        self._since = time.perf_counter()

    def push(self, token_id: int, end_ids: frozenset[int]) -> None:
        """Take the next token: text, stop conditions, clock."""
        now = time.perf_counter()
        if self.token_ids:
            self.timings.decode += now - self._since
        else:
            self.timings.prefill = now - self._since
        self._since = now
        self.token_ids.append(token_id)
        if token_id in end_ids:
            self._finish("stop", self.stream.flush())
            return
        piece, stopped = self._scanner.push(self.stream.push(token_id))
        self._emit(piece)
        if stopped:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self.params.max_new_tokens:
            self._finish("length", self.stream.flush())

    def _finish(self, reason: FinishReason, tail: str) -> None:
        """The last characters were held back: by the detokeniser, then by the scanner."""
        piece, stopped = self._scanner.push(tail)
        self._emit(piece if stopped else piece + self._scanner.flush())
        self.finish_reason = "stop" if stopped else reason

    def _emit(self, piece: str) -> None:
        if piece:
            self.text += piece
            self.pieces.append(piece)

    def result(self) -> Generation:
        """The finished generation; re-raises what ended it otherwise."""
        if self.error is not None:
            raise self.error
        assert self.finish_reason is not None, "the request has not finished"
        usage = Usage(self.prompt_tokens, self.inputs.image_tokens, len(self.token_ids))
        return Generation(self.text, self.token_ids, self.finish_reason, usage, self.timings)
