"""What a server holds, by its own `/metrics`: whether all is free at the end, and its memory no larger than before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import httpx
from prometheus_client.parser import text_string_to_metric_families

from vl.bench.serving.client import Client
from vl.errors import Error

_LOOK = 0.1  # seconds between looks at a server that is to become idle
_GROWTH = 0.05  # of the memory, that is no leak


@dataclass(frozen=True)
class Sample:
    """A look at a server.

    Attributes:
        seconds: since the beginning.
        memory: bytes of its process that are resident; 0 where they are not told. files: that it has open.
        running, waiting: answers.
        slots, pages, snapshots: of the cache, that are used by some answer. `kept`: pages that none uses.
        failed: answers that ended by an error of the engine, since it was started.
    """

    seconds: float
    memory: int
    files: int
    running: int
    waiting: int
    slots: int
    pages: int
    snapshots: int
    kept: int
    failed: int

    @property
    def idle(self) -> bool:
        return not any((self.running, self.waiting, self.slots, self.pages, self.snapshots))


def read_sample(text: str, seconds: float) -> Sample:
    """From `/metrics`. Raises Error if those are not a server's of this project."""
    values = {
        (sample.name, sample.labels.get("state") or sample.labels.get("reason")): int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    try:
        return Sample(
            seconds,
            memory=values.get(("process_resident_memory_bytes", None), 0),
            files=values.get(("process_open_fds", None), 0),
            running=values["vl_requests_running", None],
            waiting=values["vl_requests_waiting", None],
            slots=values["vl_cache_slots", "used"],
            pages=values["vl_cache_pages", "used"],
            snapshots=values["vl_cache_snapshots", "used"],
            kept=values["vl_cache_pages", "kept"],
            failed=values.get(("vl_answers_total", "error"), 0),
        )
    except KeyError as error:
        raise Error(f"the server's /metrics have no {error.args[0][0]}: a soak is of `vl serve`") from None


async def sample(client: Client, start: float) -> Sample:
    """Look now. `start`: of the clock, by `time.perf_counter`. Raises Error if the server does not say."""
    try:
        text = await client.metrics()
    except httpx.HTTPError as error:
        raise Error(f"{client.url}: /metrics cannot be had: {type(error).__name__} {error}".rstrip()) from None
    return read_sample(text, time.perf_counter() - start)


async def until_idle(client: Client, start: float, patience: float) -> Sample:
    """Look until nothing is used any more, or for `patience` seconds; the last look."""
    given_up = time.perf_counter() + patience
    while not (found := await sample(client, start)).idle and time.perf_counter() < given_up:
        await asyncio.sleep(_LOOK)
    return found


def leaks(last: Sample) -> Iterator[str]:
    """What is not free although nobody asks any more."""
    for what in ("running", "waiting", "slots", "pages", "snapshots"):
        if count := getattr(last, what):
            yield f"at the end {what}: {count}, not 0"


def memory_of(samples: Sequence[Sample]) -> tuple[float, float] | None:
    """Medians of the resident bytes in the second and in the last quarter of a time; None if they are not known."""
    quarter = len(samples) // 4
    if not quarter or not all(sample.memory for sample in samples):
        return None
    parts = samples[quarter : 2 * quarter], samples[-quarter:]
    before, after = (median(sample.memory for sample in part) for part in parts)
    return before, after


def growth(samples: Sequence[Sample]) -> Iterator[str]:
    """That memory was larger in the last quarter than in the second, if it was."""
    found = memory_of(samples)
    if found is not None and found[1] > found[0] * (1 + _GROWTH):
        yield "resident memory grew from {:.0f} to {:.0f} MiB".format(*(each / 2**20 for each in found))
