"""Memory that runs out."""

from __future__ import annotations

import torch


def is_exhausted(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, for which PyTorch has no class of its own on the CPU and on MPS."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
