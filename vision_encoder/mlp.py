"""The first half of the MLP: a product, its bias and the activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_encoder.dispatch import has_kernels, is_hopper

# From so many rows on, the activation inside the product saves more than the library's better product gives.
_LARGE = 3400


def activated(x: Tensor, linear: nn.Linear, act: nn.Module) -> Tensor:
    """`act(linear(x))`: [rows, hidden] to [rows, inner].

    The exact GELU is evaluated in float32, in the product's epilogue or in a pass of its own.
    """
    exact = type(act) is nn.GELU and act.approximate == "none"
    if not (exact and has_kernels(x.device) and x.dtype in (torch.bfloat16, torch.float16)):
        return act(F.linear(x, linear.weight, linear.bias))
    from vision_encoder import triton_mlp

    fits = all(size % 8 == 0 for size in linear.weight.shape)  # strides are multiples of 16 bytes
    if fits and len(x) >= _LARGE and is_hopper(x.device):
        return triton_mlp.gelu_product(x, linear.weight, linear.bias)
    return triton_mlp.gelu_(F.linear(x, linear.weight, linear.bias))
