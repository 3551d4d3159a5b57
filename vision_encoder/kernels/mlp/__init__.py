"""The first half of the MLP: a product, its bias and the activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_encoder.kernels.device import has_kernels, is_hopper
from vision_encoder.kernels.mlp import reference

__all__ = ["activated"]

# From so many rows on, the activation inside the product saves more than the library's better product gives.
_LARGE = 3400


def activated(x: Tensor, linear: nn.Linear, act: nn.Module) -> Tensor:
    """`act(linear(x))`; see `reference.activated`.

    The exact GELU is evaluated in float32, in the product's epilogue or in a pass of its own.
    """
    exact = type(act) is nn.GELU and act.approximate == "none"
    if not (exact and has_kernels(x.device) and x.dtype in (torch.bfloat16, torch.float16)):
        return reference.activated(x, linear, act)
    from vision_encoder.kernels.mlp import triton

    fits = all(size % 8 == 0 for size in linear.weight.shape)  # strides are multiples of 16 bytes
    if fits and len(x) >= _LARGE and is_hopper(x.device):
        return triton.gelu_product(x, linear.weight, linear.bias)
    return triton.gelu_(F.linear(x, linear.weight, linear.bias))
