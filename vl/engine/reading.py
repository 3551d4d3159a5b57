"""How far prompts are read, for whoever waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vl.engine.request import Request
from vl.errors import InputError


@dataclass(frozen=True)
class Reading:
    """How far prompts are read.

    Attributes:
        tokens: of the prompts, those that are read.
        total: tokens of the prompts.
        seconds: since the first of them were read.
        rate: tokens that were read in a second, on average; those that were kept from earlier prompts do not count.
    """

    tokens: int
    total: int
    seconds: float
    rate: float

    @property
    def remaining(self) -> float:
        """Seconds until all are read, if it goes on like this."""
        return (self.total - self.tokens) / self.rate if self.rate else float("inf")


Progress = Callable[[Reading], object]


def check_progress(progress: object) -> None:
    """Raises InputError."""
    if progress is not None and not callable(progress):
        raise InputError(f"progress={progress!r:.80} cannot be called: give a function of a vl.Reading, or None")


class Watch:
    """Tells `progress` how far the prompts of `requests` are read; called after every step.

    It tells when that has changed, in the thread that waits for the requests: what `progress` raises ends its caller's
    own requests.
    """

    def __init__(self, requests: Sequence[Request], progress: Progress | None) -> None:
        self._requests, self._progress = requests, progress
        self._total = sum(request.prompt_tokens for request in requests)
        self._begun, self._told = time.perf_counter(), 0

    def __call__(self) -> None:
        if self._progress is None or self._told == self._total:
            return
        tokens = sum(request.read_tokens for request in self._requests)
        if tokens == self._told:
            return
        self._told = tokens
        seconds = time.perf_counter() - self._begun
        found = sum(request.cached_tokens or 0 for request in self._requests)  # not read: kept from earlier prompts
        self._progress(Reading(tokens, self._total, seconds, max(0, tokens - found) / seconds))


def told_of_all(progress: Progress, total: int, known: int) -> Progress:
    """Tells of all that is read, of which `known` tokens were known, whatever requests it takes."""
    begun = time.perf_counter()

    def tell(reading: Reading) -> None:
        seconds = time.perf_counter() - begun
        tokens = max(known, reading.tokens)  # a request that gave way to others begins again, behind what is known
        progress(Reading(tokens, total, seconds, (tokens - known) / seconds))

    return tell
