"""Batches on their way from the process that made them."""

from __future__ import annotations

import io
import mmap
import os
import pickle
from collections.abc import Callable
from itertools import accumulate
from multiprocessing.reduction import DupFd
from typing import Any

import torch
from torch import Tensor

from vl.training.batch import Batch

_ALIGNED = 64  # bytes, of where a tensor begins


class Made(list[Batch]):
    """Batches that were made together, which may share tensors.

    On Linux, the memory in which they get to another process is no file of /dev/shm, as PyTorch's would be: a container
    has 64 MB there unless more was asked for, which is less than a batch.
    """

    def pin_memory(self) -> Made:
        """All of them in pinned memory, every tensor once; the data loader calls it in a thread of its own."""
        pinned: dict[int, Tensor] = {}

        def pin(tensor: Tensor) -> Tensor:
            if id(tensor) not in pinned:
                pinned[id(tensor)] = tensor.pin_memory()
            return pinned[id(tensor)]

        return Made(batch.map(pin) for batch in self)

    def __reduce__(self) -> tuple[Callable[..., Made], tuple[Any, ...]]:
        if not hasattr(os, "memfd_create"):
            return Made, (list(self),)
        head, parts = io.BytesIO(), list[pickle.PickleBuffer]()
        _BytesApart(head, 5, buffer_callback=parts.append).dump(list(self))
        views = [head.getbuffer(), *(part.raw() for part in parts)]
        with open(os.memfd_create("batches"), "wb") as file:
            for view in views:
                file.write(view)
                file.write(bytes(-view.nbytes % _ALIGNED))
            file.flush()
            return _received, ([view.nbytes for view in views], DupFd(file.fileno()))


class _BytesApart(pickle.Pickler):
    """Tensors as arrays of NumPy's, whose bytes a pickle need not hold; one that comes twice is one again."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


def _received(sizes: list[int], sent: Any) -> Made:
    """What `Made.__reduce__` took apart; the memory is given back with the last tensor."""
    file = sent.detach()
    starts = list(accumulate((size + -size % _ALIGNED for size in sizes), initial=0))
    try:
        memory = memoryview(mmap.mmap(file, starts[-1]))
    finally:
        os.close(file)
    head, *parts = (memory[start : start + size] for start, size in zip(starts, sizes, strict=False))
    return Made(pickle.loads(head, buffers=parts))
