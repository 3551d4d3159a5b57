"""The ViT of a few tiles as CUDA graphs: launching its kernels one by one takes the host longer than the GPU.

A graph repeats what the kernels did at the addresses they did it at. So weights that change in place are seen, weights
that moved are noticed and the graphs dropped; tiles are copied in and features out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vision_encoder.dispatch import has_kernels
from vision_encoder.inference import applies, encode, padded

T = TypeVar("T")

MOST = 16  # tiles; more keep the GPU busy for longer than the host needs
_known: WeakKeyDictionary[nn.Module, Replays] = WeakKeyDictionary()
_lock = Lock()


def replayed(vit: VisionTransformer, tiles: Tensor) -> Tensor | None:
    """`encode(vit, tiles)` by a graph, from the second time on that a batch of about this size comes; else None."""
    weight = cast(Any, vit.patch_embed).proj.weight
    if (
        not 1 <= len(tiles) <= MOST
        or torch.is_grad_enabled()
        or tiles.device != weight.device
        or weight.dtype not in (torch.bfloat16, torch.float16)
        or not has_kernels(tiles.device)
        or torch.is_autocast_enabled("cuda")
        or torch.cuda.is_current_stream_capturing()
    ):
        return None
    with _lock:
        replays = _known.setdefault(vit, Replays())
    return replays(vit, tiles)


def state(module: nn.Module) -> list[object]:
    """What a graph takes for granted: the modules, whether they are hooked, where parameters are and what they hold."""
    found: list[object] = [type(module), len(module._forward_hooks)]
    for parameter in module._parameters.values():
        if parameter is not None:
            found += parameter.data_ptr(), parameter.dtype
    for child in module._modules.values():
        if child is not None:
            found += state(child)
    return found


class Replays:
    """The graphs of one ViT, one for each padded number of tiles, in one pool of memory; one is replayed at a time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._state: list[object] = []
        self._forget(works=True)

    def _forget(self, works: bool) -> None:
        self._works = works
        self._seen: set[int] = set()
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}  # with the features they leave
        self._tiles: Tensor | None = None  # what they read
        self._pool: Any = None
        self._done: torch.cuda.Event | None = None  # when the features of the last replay were copied

    def __call__(self, vit: VisionTransformer, tiles: Tensor) -> Tensor | None:
        with self._lock:
            now = state(vit)
            if now != self._state:
                self._forget(works=applies(vit, tiles))
                self._state = now
            if not self._works:
                return None
            size = padded(len(tiles))
            if size not in self._graphs:
                if size not in self._seen:
                    self._seen.add(size)
                    return None
                try:
                    self._record(vit, tiles, size)
                except RuntimeError as error:
                    self._forget(works=False)
                    warnings.warn(
                        f"the vision tower could not become a CUDA graph, so it is launched op by op, which is slower "
                        f"for few tiles: {error}",
                        stacklevel=5,
                    )
                    return None
            return self._replay(tiles, *self._graphs[size])

    def _replay(self, tiles: Tensor, graph: torch.cuda.CUDAGraph, features: Tensor) -> Tensor:
        assert self._tiles is not None
        stream = torch.cuda.current_stream()
        if self._done is not None:
            stream.wait_event(self._done)  # another thread may be on another stream
        self._tiles[: len(tiles)].copy_(tiles)
        graph.replay()
        out = features[: len(tiles)].clone()
        self._done = stream.record_event()
        return out

    def _record(self, vit: VisionTransformer, tiles: Tensor, size: int) -> None:
        if self._tiles is None:
            with torch.inference_mode(False):  # or only inference mode could write to it
                self._tiles = tiles.new_zeros(MOST, *tiles.shape[1:])
            self._pool = torch.cuda.graph_pool_handle()
        run = partial(encode, vit, self._tiles[:size])
        self._graphs[size] = captured(run, self._pool, torch.cuda.Stream(tiles.device))


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
