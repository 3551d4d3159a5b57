"""Products with NF4 matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from text_backbone.kernels.device import use_gpu_kernels
from text_backbone.kernels.nf4 import reference

__all__ = ["linear"]


def linear(
    x: Tensor, codes: Tensor, scales: Tensor, nested: Tensor, offset: Tensor, first: int = 0, stride: int = 0
) -> Tensor:
    """Same as `reference.linear`."""
    if use_gpu_kernels(x) and offset.dim() == 0 and not (torch.is_grad_enabled() and x.requires_grad):
        from text_backbone.kernels.nf4 import triton

        if triton.reads(x.shape[1]):
            return triton.linear(x, codes, scales, nested, offset, first, stride)
    return reference.linear(x, codes, scales, nested, offset, first, stride)
