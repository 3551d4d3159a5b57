"""What a GPU is and can: no other file of this package asks CUDA about its devices."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch


@cache
def has_kernels(device: torch.device) -> bool:
    """Whether Triton compiles for `device`: NVIDIA from Ampere on."""
    if device.type != "cuda" or torch.version.hip is not None or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def is_hopper(device: torch.device) -> bool:
    """Whether the products and attention of our own, whose shapes are measured on Hopper alone, are worth choosing."""
    return has_kernels(device) and torch.cuda.get_device_capability(device)[0] == 9


@cache
def prefers_cudnn(device: torch.device) -> bool:
    """Whether cuDNN's attention is the library's fastest: from Hopper on; before, PyTorch's own choice is right."""
    return has_kernels(device) and torch.cuda.get_device_capability(device) >= (9, 0)


@cache
def multiprocessors(device: torch.device) -> int:
    """How many there are; in Triton's interpreter a few, so that programs have more than one tile to do."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
