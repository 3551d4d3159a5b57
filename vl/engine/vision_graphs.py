"""The ViT of a few tiles as CUDA graphs: launching its kernels one by one takes the host longer than the GPU.

A graph repeats what the kernels did at the addresses they did it at. So weights that change in place are seen, weights
that moved are noticed and the graphs dropped; tiles are copied in and features out.
"""

from __future__ import annotations

import warnings
from functools import partial
from threading import Lock
from typing import Any, cast

import torch
from torch import Tensor, nn

from vision_encoder.inference import applies, encode, padded
from vision_encoder.kernels.device import has_kernels
from vision_encoder.timm_parts import VisionTransformer
from vl.engine.graphs import captured

MOST = 16  # tiles; more keep the GPU busy for longer than the host needs


def _may_replay(vit: VisionTransformer, tiles: Tensor) -> bool:
    weight = cast(Any, vit.patch_embed).proj.weight
    return (
        1 <= len(tiles) <= MOST
        and not torch.is_grad_enabled()
        and tiles.device == weight.device
        and weight.dtype in (torch.bfloat16, torch.float16)
        and has_kernels(tiles.device)
        and not torch.is_autocast_enabled("cuda")
        and not torch.cuda.is_current_stream_capturing()
    )


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


class VisionGraphs:
    """The graphs of one ViT, one for each padded number of tiles, in one pool of memory; one is replayed at a time.

    Called with the ViT and tiles, uint8 [n, 3, S, S], it answers `encode(vit, tiles)` by a graph, from the second time
    on that a batch of about this size comes; otherwise None: run it as it is.
    """

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
        if not _may_replay(vit, tiles):
            return None
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
                        stacklevel=4,
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
