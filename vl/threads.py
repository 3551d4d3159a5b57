"""Several files worked on at once, and work that is better done by one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event
from typing import Any, TypeVar

import torch

from preprocessing.container import available_cpus

T = TypeVar("T")
R = TypeVar("R")
MOST = 8


def merged(work: Callable[[T], Iterator[R]], items: Sequence[T], threads: int | None = None) -> Iterator[R]:
    """What `work` yields for each of the items, in any order, from several threads.

    When one fails, or nobody asks for more, the others end at their next result; the first error is raised.

    Args:
        threads: by default as many as there are CPUs, and at most 8. One, or one item, works in this thread.
    """
    count = min(len(items), threads or min(MOST, available_cpus()))
    if count <= 1:
        for item in items:
            yield from work(item)
        return
    results: SimpleQueue[Any] = SimpleQueue()
    stopped, inference = Event(), torch.is_inference_mode_enabled()

    def run(item: T) -> None:
        with torch.inference_mode(inference):
            if not stopped.is_set():
                for result in work(item):
                    results.put(result)
                    if stopped.is_set():
                        return

    with ThreadPoolExecutor(count, thread_name_prefix="vl-files") as pool:
        left = len(items)
        try:
            for item in items:
                pool.submit(run, item).add_done_callback(results.put)
            while left:
                result = results.get()
                if isinstance(result, Future):
                    result.result()
                    left -= 1
                else:
                    yield result
        finally:
            stopped.set()


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch's operations on the CPU are done by the thread that asks for them, until the end.

    For small ones while other processes have the CPUs: its threads wait for each other after every operation on more
    than 32,768 elements, up to a time slice of the others, which is hundreds of times the operation itself.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
