"""Attention within each tile, on the library's kernels."""

from __future__ import annotations

from contextlib import nullcontext

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vision_encoder.kernels.device import prefers_cudnn

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
    fastest = sdpa_kernel(_FASTEST, set_priority=True) if prefers_cudnn(qkv.device) else nullcontext()
    with fastest:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)
