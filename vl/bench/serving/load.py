"""Requests that arrive at random times, at most so many of them under way at once."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vl.bench.serving.client import Answer, Client
from vl.bench.serving.requests import Question


@dataclass(frozen=True)
class Sent:
    """A request and its answer. `due`: when it arrived, by `time.perf_counter`; it was sent when there was a place."""

    question: Question
    due: float
    answer: Answer

    @property
    def held_back(self) -> float:
        """Seconds until it was sent."""
        return self.answer.sent - self.due


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """When requests of a Poisson process arrive, in seconds; `rate`: a second, and if infinite, all are there at 0."""
    if math.isinf(rate):
        return [0.0] * count
    chosen, now, found = random.Random(seed), 0.0, []
    for _ in range(count):
        found.append(now)
        now += chosen.expovariate(rate)
    return found


async def send(
    client: Client,
    questions: Sequence[Question],
    fields: Mapping[str, Any],
    *,
    rate: float = math.inf,
    concurrency: int | None = None,
    seed: int = 0,
    tell: Callable[[int], object] = lambda _: None,
) -> list[Sent]:
    """Send all of them, and wait for all answers.

    Args:
        fields: of every request beside its messages.
        rate: of their arrivals, see `arrivals`.
        concurrency: under way at once; others are held back, the first to arrive goes first. None: all.
        tell: told how many have ended.
    """
    places = asyncio.Semaphore(concurrency or len(questions))
    start, ended = time.perf_counter(), 0

    async def one(question: Question, after: float) -> Sent:
        nonlocal ended
        due = start + after
        await asyncio.sleep(due - time.perf_counter())
        async with places:
            answer = await client.stream({**fields, "messages": question.messages})
        ended += 1
        tell(ended)
        return Sent(question, due, answer)

    times = arrivals(len(questions), rate, seed)
    return list(await asyncio.gather(*(one(*each) for each in zip(questions, times, strict=True))))
