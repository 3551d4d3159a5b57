"""One request on its way through the engine: from token ids to text."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from preprocessing.reasoning import Markers
from vl.engine.driven import TextStream
from vl.engine.keys import Keys
from vl.engine.params import SamplingParams
from vl.engine.prefix import Held, Sequenced
from vl.engine.prompt import Prompt
from vl.engine.results import FinishReason, Generation, Timings, TokenLogprob, Usage
from vl.engine.structured import Form


class StopScanner:
    """Releases text as soon as it cannot be the beginning of a stop string any more."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._longest = max(map(len, stop), default=0)
        self._held = ""
        self.met: str | None = None

    def push(self, piece: str) -> tuple[str, bool]:
        """Add `piece`; returns the text that is safe to show and whether a stop string was met: `met`."""
        self._held += piece
        hits = [(at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if hits:
            at, self.met = min(hits)
            return self._release(at), True
        return self._release(len(self._held) - self._undecided()), False

    def flush(self) -> str:
        return self._release(len(self._held))

    def _undecided(self) -> int:
        """Length of the longest tail of the held text that begins a stop string.

        What is passed over before it is released and not looked at again: so this takes a time for each character of
        an answer, and not for each that a stop string has, for which all others of the batch would wait.
        """
        size = len(self._held)
        for at in range(max(0, size - self._longest), size):
            tail = self._held[at:]
            if any(stop.startswith(tail) for stop in self._stop):
                return size - at
        return 0

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text


@dataclass(eq=False, kw_only=True)
class Request(Sequenced):
    """A prompt, and the text it has produced so far.

    Attributes:
        stream: makes text of its tokens.
        key: of its sampling noise.
        features: `[tokens, hidden]` of those of its images, by number, of which some token is yet to be read.
        watches: what the vision encoder's work for it took, in seconds; to be asked when that work is known to be done.
        markers: of what it may think before it answers, if the model does.
        reasoning: what was thought, which is no part of `text`. `reasoning_tokens`: in it, its markers included.
        token_ids, text: all that was generated. `pieces`: text not yet taken by a consumer. `logprobs`: one for each
            token, if they were asked for.
        finish_reason, error: how it ended; None while it has not.
        form: what it is held to, if anything.
        index: which of its prompt's answers it is.
        hold: whether what it has read is to be held when it has ended. `held`: then that.
    """

    prompt: Prompt
    params: SamplingParams
    stream: TextStream
    key: int
    timings: Timings = field(default_factory=Timings)
    features: dict[int, Tensor] = field(default_factory=dict)
    watches: list[Callable[[], float]] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    pieces: deque[str] = field(default_factory=deque)
    text: str = ""
    finish_reason: FinishReason | None = None
    error: BaseException | None = None
    form: Form | None = None
    index: int = 0
    markers: Markers | None = None
    reasoning: str = ""
    reasoning_tokens: int = 0
    hold: bool = False
    held: Held | None = None

    def __post_init__(self) -> None:
        self._scanner = StopScanner(self.params.stops)
        self._keys = Keys(self.prompt, self.known_ids)
        self._since = 0.0
        self._thinking = False

    @property
    def done(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def stopped(self) -> str | None:
        """The stop string that ended it, if one did."""
        return self._scanner.met

    @property
    def read_tokens(self) -> int:
        """Tokens of the prompt that are read; all of them once it has written any, though it may begin again."""
        return self.prompt_tokens if self.written else min(self.computed, self.prompt_tokens)

    def start(self) -> None:
        """It runs now; when it began is what counts, whatever came in between."""
        self._since = self._since or time.perf_counter()

    @property
    def usage(self) -> Usage:
        cached = self.cached_tokens or 0
        return Usage(self.prompt_tokens, len(self.prompt.places), len(self.token_ids), cached, self.reasoning_tokens)

    @property
    def said_ids(self) -> list[int]:
        """What was generated after what was thought."""
        return self.token_ids[self.reasoning_tokens :]

    def key_at(self, tokens: int) -> bytes:
        return self._keys.at(tokens)

    def known_ids(self, start: int, stop: int) -> Tensor:
        """int64 on the host: its tokens from `start` to `stop`, those of the prompt and those written."""
        ids = self.prompt.input_ids[start:stop]
        written = self.token_ids[max(0, start - self.prompt_tokens) : max(0, stop - self.prompt_tokens)]
        return torch.cat((ids, torch.tensor(written, dtype=torch.int64))) if written else ids

    def push(self, token_id: int, end_ids: frozenset[int]) -> None:
        """Take the next token: text, stop conditions, clock."""
        now = time.perf_counter()
        if self.token_ids:
            self.timings.decode += now - self._since
        else:
            self.timings.vision = sum(watch() for watch in self.watches)
            self.timings.prefill = max(0.0, now - self._since - self.timings.vision)
        self._since = now
        self.watches.clear()
        self.written += 1
        self.token_ids.append(token_id)
        if token_id in end_ids:
            self._finish("stop")
            return
        if not self._thinks(token_id):
            self._say(self.stream.push(token_id))
        if not self.finish_reason and len(self.token_ids) == self.params.max_new_tokens:
            self._finish("length")

    def _thinks(self, token_id: int) -> bool:
        """Whether this token is thought, not said: from the first marker, which nothing precedes, to the second."""
        if self.markers is None or not (self._thinking or (token_id == self.markers.open and len(self.token_ids) == 1)):
            return False
        self.reasoning_tokens += 1
        if token_id == self.markers.close:
            self._end_thinking()
        elif self._thinking:
            self.reasoning += self.stream.push(token_id)
        else:
            self._thinking = True
        return True

    def _end_thinking(self) -> None:
        self.reasoning += self.stream.flush()
        self._thinking = False

    def _say(self, text: str) -> None:
        """Takes more of the answer, which a stop string ends."""
        piece, stopped = self._scanner.push(text)
        self._emit(piece)
        if stopped:
            self.finish_reason = "stop"

    def _finish(self, reason: FinishReason) -> None:
        """The last characters were held back: by the detokeniser, then by the scanner."""
        if self._thinking:
            self._end_thinking()
        tail = self.stream.flush()
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
        logprobs = self.logprobs if self.params.logprobs else None
        return Generation(
            self.text,
            self.token_ids,
            self.finish_reason,
            self.usage,
            self.timings,
            logprobs=logprobs,
            index=self.index,
            reasoning=self.reasoning,
        )
