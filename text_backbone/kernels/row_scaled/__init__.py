"""Products with matrices of eight bits a value and one scale for every row."""

from __future__ import annotations

import torch
from torch import Tensor

from text_backbone.kernels.device import has_e4m3, use_gpu_kernels
from text_backbone.kernels.row_scaled import reference

__all__ = ["linear"]


def linear(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """Same as `reference.linear`, which also computes what needs gradients."""
    if (
        use_gpu_kernels(x)
        and not (torch.is_grad_enabled() and x.requires_grad)
        and (codes.dtype == torch.int8 or has_e4m3(x.device))
    ):
        from text_backbone.kernels.row_scaled import dense

        return dense.linear(x, codes, scales)
    return reference.linear(x, codes, scales)
