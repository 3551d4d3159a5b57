"""Whether an op runs on its GPU kernel or on its PyTorch reference."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

_OLDEST = (8, 0)  # Ampere: the first with bfloat16 tensor cores and asynchronous copies
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_references_only: ContextVar[bool] = ContextVar("references_only", default=False)


def use_gpu_kernels(x: Tensor) -> bool:
    """Whether an op on `x` has a kernel here: a CUDA tensor in bf16, fp16 or fp32, on an Ampere or newer GPU."""
    return x.dtype in _DTYPES and kernels_on(x.device)


def kernels_on(device: torch.device) -> bool:
    """Whether ops have kernels on `device`, for tensors of the dtypes that they take."""
    return device.type == "cuda" and not _references_only.get() and _able(device)


@contextmanager
def reference_kernels() -> Iterator[None]:
    """Inside, every op runs on its reference: to compare the two, or to rule a kernel out."""
    token = _references_only.set(True)
    try:
        yield
    finally:
        _references_only.reset(token)


@cache
def _able(device: torch.device) -> bool:
    capability, name = torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device)
    missing = None
    if torch.version.hip is not None:
        missing = "the kernels are written for NVIDIA GPUs"
    elif capability < _OLDEST:
        missing = f"its compute capability {capability[0]}.{capability[1]} is below 8.0 (Ampere)"
    elif find_spec("triton") is None:
        missing = "Triton is not installed (pip install triton)"
    if missing:
        warnings.warn(f"no GPU kernels on {name}: {missing}. The slower PyTorch references run instead.", stacklevel=3)
    return missing is None
