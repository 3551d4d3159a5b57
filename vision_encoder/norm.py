"""LayerNorm of a residual stream that is kept without the biases that were added to it."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def shifted_norm(x: Tensor, shift: Tensor, norm: nn.LayerNorm) -> Tensor:
    """`norm(x + shift)` in float32, in `x`'s dtype; on a GPU in one pass.

    Args:
        x: [rows, hidden], contiguous.
        shift: float32 [hidden].
    """
    if x.is_cuda and _able(x.device):
        from vision_encoder import triton_norm

        return triton_norm.shifted_norm(x, shift, norm.weight, norm.bias, norm.eps)
    weight, bias = norm.weight.float(), norm.bias.float()
    return F.layer_norm(x + shift, norm.normalized_shape, weight, bias, norm.eps).to(x.dtype)


@cache
def _able(device: torch.device) -> bool:
    capable = torch.cuda.get_device_capability(device) >= (8, 0)
    return capable and torch.version.hip is None and find_spec("triton") is not None
