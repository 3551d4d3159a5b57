"""What a GPU is and can, and what follows from it: no other file of this package asks CUDA about its devices."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

AMPERE = (8, 0)  # the first with bfloat16 tensor cores and asynchronous copies
ADA = (8, 9)  # the first that converts and multiplies e4m3
HOPPER = (9, 0)
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
def capability(device: torch.device) -> tuple[int, int]:
    """NVIDIA's compute capability, (0, 0) of anything else; of `meta` that of the GPU that is compiled for."""
    if device.type not in ("cuda", "meta") or torch.version.hip is not None or not torch.cuda.is_available():
        return 0, 0
    return torch.cuda.get_device_capability(device if device.type == "cuda" else None)


def has_e4m3(device: torch.device) -> bool:
    """Whether kernels on a CUDA device can compute with FP8 (e4m3)."""
    return capability(device) >= ADA


@cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; of `meta` those of the GPU that is compiled for."""
    return torch.cuda.get_device_properties(None if device.type == "meta" else device).multi_processor_count


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may use on a CUDA device: 227 KiB on Hopper, 163 on A100, 99 on others."""
    properties: Any = torch.cuda.get_device_properties(device)  # not every version of torch types all of them
    return int(properties.shared_memory_per_block_optin)


def float32_precision() -> str:
    """How kernels take float32 products, as `tl.dot` calls it: exactly, unless the user allowed TF32."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@cache
def _able(device: torch.device) -> bool:
    missing = None
    if torch.version.hip is not None:
        missing = "the kernels are written for NVIDIA GPUs"
    elif capability(device) < AMPERE:
        missing = "its compute capability {}.{} is below 8.0 (Ampere)".format(*capability(device))
    elif find_spec("triton") is None:
        missing = "Triton is not installed (pip install triton)"
    if missing:
        name = torch.cuda.get_device_name(device)
        warnings.warn(f"no GPU kernels on {name}: {missing}. The slower PyTorch references run instead.", stacklevel=3)
    return missing is None
