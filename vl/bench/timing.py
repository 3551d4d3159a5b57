"""How long calls take: on the host's clock, by the device's events, or inside a CUDA graph."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

import torch
from torch import Tensor

from vl.bench.records import Call

FEWEST, MOST = 3, 100  # turns that a median is taken of
_LONG = 3.0  # seconds after which one turn has to do
_GRAPH = 2e-3  # seconds that a graph should last, so that its launch does not count
_CYCLES = 3e9  # of the device's clock in a second, at least as many as it really makes
_LONGEST_SLEEP = 0.05


@dataclass(frozen=True, slots=True)
class Timing:
    """Median seconds of one call, and how they were measured."""

    seconds: float
    method: str


def measure(calls: Sequence[Call], device: torch.device, *, how: str = "device", budget: float = 0.3) -> Timing:
    """Time of one call, as the median over turns through all `calls`, after a warm-up.

    Several calls do the same on different data: they keep the data of the last call from being found in a cache. A
    single one finds the GPU's caches full of something else where `how` is `device`.

    Args:
        how: see `Contest.how`; on a CPU it is always `wall`.
        budget: seconds to spend, after the warm-up.
    """
    if device.type != "cuda" or how == "wall":
        return _by_clock(calls, device, budget)
    if how == "graph":
        try:
            return _by_graph(calls, device, budget)
        except Exception:  # it waits for the device somewhere: a graph cannot hold it
            torch.cuda.synchronize(device)
    return _by_events(calls, device, budget)


def rotations(footprint: float, device: torch.device) -> int:
    """How many inputs of so many bytes keep each other out of the device's caches."""
    return 1 if device.type != "cuda" else max(1, min(64, math.ceil(3 * _cache_bytes(device) / footprint)))


def _by_clock(calls: Sequence[Call], device: torch.device, budget: float) -> Timing:
    def turn() -> float:
        start = time.perf_counter()
        for call in calls:
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    first = turn()
    times = [turn()] if first < 20 * _LONG else [first]
    times += [turn() for _ in range(_turns(times[0], budget) - 1)]
    return Timing(median(times) / len(calls), "wall clock")


def _by_events(calls: Sequence[Call], device: torch.device, budget: float) -> Timing:
    """The device sleeps before each turn while the host queues it: the host's pace does not count."""
    for _ in range(2):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        for call in calls:
            call()
        queued = time.perf_counter() - start
        torch.cuda.synchronize(device)
        total = time.perf_counter() - start
    scrub = _scrub(device)
    marks = []
    for _ in range(_turns(total, budget)):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        scrub.zero_()
        torch.cuda._sleep(int(_CYCLES * min(_LONGEST_SLEEP, 2 * queued)))
        begin.record()
        for call in calls:
            call()
        end.record()
        marks.append((begin, end))
    torch.cuda.synchronize(device)
    return Timing(median(begin.elapsed_time(end) for begin, end in marks) / 1e3 / len(calls), "events")


def _by_graph(calls: Sequence[Call], device: torch.device, budget: float) -> Timing:
    once = _by_events(calls, device, budget / 10).seconds * len(calls)
    rounds = max(1, min(64, math.ceil(_GRAPH / max(once, 1e-7))))
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # libraries make their workspaces per stream, before a capture
        for call in calls:
            call()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    # A failed capture may leave its own stream behind as the current one.
    with torch.cuda.stream(torch.cuda.current_stream(device)), torch.cuda.graph(graph, stream=stream):
        for _ in range(rounds):
            for call in calls:
                call()
    timing = _by_events([graph.replay], device, budget)
    return Timing(timing.seconds / (rounds * len(calls)), "graph")


def _turns(seconds: float, budget: float) -> int:
    if seconds > _LONG:
        return 1
    return max(FEWEST, min(MOST, int(budget / max(seconds, 1e-6))))


@cache
def _scrub(device: torch.device) -> Tensor:
    """Zeroing it pushes everything else out of the caches."""
    return torch.empty(4 * _cache_bytes(device), dtype=torch.uint8, device=device)


@cache
def _cache_bytes(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).L2_cache_size)
