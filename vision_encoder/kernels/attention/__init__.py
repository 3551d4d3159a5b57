"""Attention within each tile, read straight from the fused projection."""

from __future__ import annotations

import torch
from torch import Tensor

from vision_encoder.kernels.attention import reference
from vision_encoder.kernels.device import is_hopper

__all__ = ["attention", "has_own_kernel"]


def attention(qkv: Tensor, tokens: int, heads: int) -> Tensor:
    """Every token of a tile attends to every other; see `reference.attention`."""
    if not has_own_kernel(qkv.device, qkv.dtype, qkv.shape[1] // (3 * heads)):
        return reference.attention(qkv, tokens, heads)
    from vision_encoder.kernels.attention import triton

    return triton.attention(qkv, tokens, heads)


def has_own_kernel(device: torch.device, dtype: torch.dtype, head: int) -> bool:
    """Whether heads `head` wide are left to a kernel of our own."""
    return is_hopper(device) and dtype in (torch.bfloat16, torch.float16) and head in (16, 32, 64)
