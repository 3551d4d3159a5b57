"""Attention within each tile, on the library's kernels."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vision_encoder.kernels.device import has_kernels

_FASTEST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def attention(qkv: Tensor, tokens: int, heads: int) -> Tensor:
    """Every token of a tile attends to every other: [n * tokens, 3 * heads * d] to [n * tokens, heads * d]."""
    q, k, v = qkv.view(-1, tokens, 3, heads, qkv.shape[1] // (3 * heads)).permute(
        2, 0, 3, 1, 4
    )  # [n, heads, tokens, d]
    with _backend(qkv.device):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)


def _backend(device: torch.device) -> AbstractContextManager[None]:
    """cuDNN's attention is the library's fastest from Hopper on; before, PyTorch's own choice is right."""
    if has_kernels(device) and torch.cuda.get_device_capability(device) >= (9, 0):
        return sdpa_kernel(_FASTEST, set_priority=True)
    return nullcontext()
