"""Files worked on at once: everything comes, the first error ends it, and so does whoever stops asking.

And work of the host beside busy processes, which is done by one thread.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from forkserver import run

from vl.threads import merged, one_thread


@pytest.mark.parametrize("threads", [1, 3])
def test_all_results_of_all_items_come(threads: int) -> None:
    def work(item: int) -> Iterator[tuple[int, int]]:
        yield from ((item, i) for i in range(item))

    found = list(merged(work, range(6), threads))
    assert sorted(found) == [(item, i) for item in range(6) for i in range(item)]
    assert list(merged(work, [], threads)) == []


def test_items_are_worked_on_at_once() -> None:
    together = threading.Barrier(3, timeout=200)

    def work(item: int) -> Iterator[int]:
        together.wait()
        yield item

    assert sorted(merged(work, [1, 2, 3], 3)) == [1, 2, 3]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_error_ends_the_others(threads: int) -> None:
    seen: list[int] = []

    def work(item: int) -> Iterator[int]:
        if item == 1:
            raise KeyError("here")
        for i in range(10**6):
            seen.append(i)
            yield i
            time.sleep(0.001)

    with pytest.raises(KeyError, match="here"):
        list(merged(work, [1, 2, 3, 4], threads))
    assert len(seen) < 10**5  # of 10**6 for each item
    assert not [t for t in threading.enumerate() if t.name.startswith("vl-files")]


def test_whoever_stops_asking_ends_the_work() -> None:
    def work(item: int) -> Iterator[int]:
        for i in range(10**6):
            yield i
            time.sleep(0.001)

    results = merged(work, [1, 2], 2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("vl-files")]


def test_tensors_made_in_inference_mode_are_filled_in_it() -> None:
    with torch.inference_mode():
        tensors = [torch.zeros(3) for _ in range(4)]

        def work(i: int) -> Iterator[int]:
            tensors[i].fill_(i)
            yield i

        list(merged(work, range(4), 2))
    assert [int(t[0]) for t in tensors] == [0, 1, 2, 3]


def test_one_thread_until_the_end_and_after_an_error_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        with pytest.raises(KeyError), one_thread():
            raise KeyError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


_HOST_WORK = """
import os, torch
from preprocessing.patcher import Patcher
from preprocessing.processor import _joined as join_images
from vision_encoder.packing import plan_packing
from vl.engine.embedding import _joined as join_tiles
from vl.threads import one_thread

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(4)
patcher, numbers = Patcher(), torch.empty(100_000)
grid = patcher.grid(2016, 2016)
tiles = [torch.empty(2, 3, 336, 336, dtype=torch.uint8) for _ in range(2)]
before = threads()
plan_packing([grid] * 4, 24)
join_tiles(tiles, torch.device("cpu"))
join_images(tiles, [grid, grid], patcher)
with one_thread():
    numbers + 1
assert threads() == before, (before, threads())
numbers + 1
assert threads() > before, "PyTorch would have started none for anything"
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted by /proc")
def test_what_the_host_does_beside_busy_processes_starts_no_threads_of_pytorch() -> None:
    """They wait for each other, and so for the processes that have the CPUs, at each of many small operations."""
    run([sys.executable, "-c", _HOST_WORK], check=True, timeout=200)
