"""Attention within each tile, read straight from the fused projection."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vision_encoder.dispatch import has_kernels, is_hopper

_FASTEST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def attention(qkv: Tensor, tokens: int, heads: int) -> Tensor:
    """Every token of a tile attends to every other: [n * tokens, 3 * heads * d] to [n * tokens, heads * d]."""
    d = qkv.shape[1] // (3 * heads)
    if has_own_kernel(qkv.device, qkv.dtype, d):
        from vision_encoder import triton_attention

        return triton_attention.attention(qkv, tokens, heads)
    q, k, v = qkv.view(-1, tokens, 3, heads, d).permute(2, 0, 3, 1, 4)  # [n, heads, tokens, d] each
    with _backend(qkv.device):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)


def has_own_kernel(device: torch.device, dtype: torch.dtype, head: int) -> bool:
    """Whether heads `head` wide are left to a kernel of our own."""
    return is_hopper(device) and dtype in (torch.bfloat16, torch.float16) and head in (16, 32, 64)


def _backend(device: torch.device) -> AbstractContextManager[None]:
    """cuDNN's attention is the library's fastest from Hopper on; before, PyTorch's own choice is right."""
    if has_kernels(device) and torch.cuda.get_device_capability(device) >= (9, 0):
        return sdpa_kernel(_FASTEST, set_priority=True)
    return nullcontext()
