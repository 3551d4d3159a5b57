"""Products with NF4 matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from text_backbone.kernels.device import use_gpu_kernels
from text_backbone.kernels.nf4 import reference

__all__ = ["linear", "linear_to", "linears"]

Numbered = tuple[Tensor, Tensor, Tensor, Tensor, int, int]  # what `linear` takes behind x


def linear(
    x: Tensor, codes: Tensor, scales: Tensor, nested: Tensor, offset: Tensor, first: int = 0, stride: int = 0
) -> Tensor:
    """Same as `reference.linear`."""
    if offset.dim() == 0 and _has_kernels(x):
        from text_backbone.kernels.nf4 import triton

        if triton.reads(x.shape[1]):
            return triton.linear(x, codes, scales, nested, offset, first, stride)
    return reference.linear(x, codes, scales, nested, offset, first, stride)


def linears(x: Tensor, weights: Sequence[Numbered]) -> list[Tensor] | None:
    """`linear` of the same rows with several matrices in one launch, each given as there; None if no kernel can."""
    if not _has_kernels(x):
        return None
    from text_backbone.kernels.nf4 import triton

    return triton.linears(x, [triton.Weight(*weight) for weight in weights])


def linear_to(y: Tensor, x: Tensor, weight: Numbered) -> bool:
    """Have a kernel write `linear` to y [T, rows], whose rows may be apart; False, and nothing, if none can."""
    if not _has_kernels(x):
        return False
    from text_backbone.kernels.nf4 import triton

    return triton.linear_to(y, x, triton.Weight(*weight))


def _has_kernels(x: Tensor) -> bool:
    return use_gpu_kernels(x) and not (torch.is_grad_enabled() and x.requires_grad)
