"""The ViT without gradients on a GPU: timm's parameters, fewer passes over memory.

The products are most of the work, and the library's are hard to beat; what is left to save is what lies between them.
The residual stream is a buffer that the output projections add to in their own epilogue. They leave out their biases,
whose sum so far is one vector: the next norm adds it as it reads. That leaves per block four products, attention, two
norms and the activation.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vision_encoder.norm import shifted_norm

_FASTEST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def applies(vit: VisionTransformer, tiles: Tensor) -> bool:
    """Whether `encode` may stand in for `vit.forward_features`: no gradients, and every projection as it was built."""
    blocks, embed = cast(Any, vit.blocks), cast(Any, vit.patch_embed)
    if torch.is_grad_enabled() or not tiles.is_cuda or not len(tiles) or embed.proj.weight.dtype == torch.float64:
        return False
    projections = (p for block in blocks for p in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2))
    return all(type(projection) is nn.Linear and not projection._forward_hooks for projection in projections)


def encode(vit: VisionTransformer, tiles: Tensor) -> Tensor:
    """`vit.forward_features(tiles)`: uint8 [n, 3, S, S] to [n, 1 + patches**2, hidden]."""
    count = len(tiles)
    tiles = _filled_up(tiles)
    with _attention_backend(tiles.device):
        features = _blocks(vit, vit.norm_pre(vit._pos_embed(vit.patch_embed(tiles))))
    return vit.norm(features[:count])


def padded(count: int) -> int:
    """Tiles that `count` are filled up to, a fifth more at most: attention is planned anew for every size.

    Up to 8 every number, up to 16 the even ones, up to 128 multiples of four, then of sixteen.
    """
    step = 1 if count <= 8 else 2 if count <= 16 else 4 if count <= 128 else 16
    return -(-count // step) * step


def _filled_up(tiles: Tensor) -> Tensor:
    spare = padded(len(tiles)) - len(tiles)
    return torch.cat((tiles, tiles.new_zeros(spare, *tiles.shape[1:]))) if spare else tiles


def _attention_backend(device: torch.device) -> AbstractContextManager[None]:
    """cuDNN's attention is the fastest from Hopper on; before, PyTorch's own choice is right."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0):
        return sdpa_kernel(_FASTEST, set_priority=True)
    return nullcontext()


def _blocks(vit: VisionTransformer, x: Tensor) -> Tensor:
    """The blocks over x [n, tokens, hidden], which is overwritten."""
    blocks: Any = vit.blocks
    # Row 2 i is the sum of the biases before block i, row 2 i + 1 that before its MLP.
    biases = torch.stack([bias for block in blocks for bias in (block.attn.proj.bias, block.mlp.fc2.bias)])
    shifts = F.pad(biases.cumsum(0, dtype=torch.float32), (0, 0, 1, 0))  # [2 * blocks + 1, hidden]
    stream = x.contiguous().flatten(0, 1)  # [n * tokens, hidden]
    for i, block in enumerate(blocks):
        qkv = block.attn.qkv(shifted_norm(stream, shifts[2 * i], block.norm1))
        stream.addmm_(_attention(qkv.view(*x.shape[:2], 3, block.attn.num_heads, -1)), block.attn.proj.weight.T)
        h = block.mlp.fc1(shifted_norm(stream, shifts[2 * i + 1], block.norm2))
        stream.addmm_(block.mlp.act(h), block.mlp.fc2.weight.T)
    return torch.add(stream, shifts[-1], out=stream).view_as(x)


def _attention(qkv: Tensor) -> Tensor:
    """Attention within each tile: [n, tokens, 3, heads, d] to [n * tokens, heads * d]."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [n, heads, tokens, d] each
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)
