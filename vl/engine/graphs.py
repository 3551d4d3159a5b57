"""CUDA graphs of one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from text_backbone.kernels.device import use_gpu_kernels

T = TypeVar("T")


class Recorder(Protocol):
    """Turns a function into one that repeats what it did on the device, without what it did on the host."""

    def ready(self, weight: Tensor) -> bool:
        """Whether what is recorded now, of a model that has this weight, depends on the device alone."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run `run` a few times; returns its replay."""


class GraphRecorder:
    """Captures functions as CUDA graphs in one memory pool; they are replayed one at a time, in any order."""

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        # PyTorch's own capture stream is on whichever device was current when it was made.
        self._stream = torch.cuda.Stream(device)

    def ready(self, weight: Tensor) -> bool:
        return use_gpu_kernels(weight)  # the references read lengths on the host

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run `run` to warm up (its kernels are compiled, its workspaces made), then capture it; returns its replay.

        What `run` holds on to lives as long as the replay, and has to stay where it is; what it allocates lives in the
        pool until the next replay.

        Raises:
            RuntimeError: if `run` does what a graph cannot hold, such as waiting for the device.
        """
        graph, _ = captured(run, self._pool, self._stream)

        def replay(_kept: Callable[[], None] = run) -> None:
            graph.replay()

        return replay


def captured(run: Callable[[], T], pool: Any, stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, T]:
    """Run `run` on `stream` to warm up (its kernels are compiled, its workspaces made), then capture it.

    Returns:
        The graph, and what `run` returned in it: memory that the graph's replays write to.

    Raises:
        RuntimeError: if `run` does what a graph cannot hold, such as waiting for the device.
    """
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        run()
        run()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with (
            torch.cuda.stream(current),  # a failed capture may leave its own stream behind
            # Other threads may go on using the GPU meanwhile.
            torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"),
        ):
            return graph, run()
    except RuntimeError:
        _recover()
        raise


def _recover() -> None:
    """After a capture failed: it left the random generator as if it went on, and one that succeeds ends that."""
    with torch.inference_mode(False):
        number = torch.zeros(1, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        number.add_(1)
