"""The ViT without gradients on a GPU: timm's parameters, fewer passes over memory.

The products are most of the work, and the library's are hard to beat; what is left to save is what lies between them.
The residual stream is a buffer that the output projections add to in their own epilogue. They leave out their biases,
whose sum so far is one vector: the next norm adds it as it reads. That leaves per block four products, of which one
applies the activation, attention and two norms.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_encoder.kernels.attention import attention, has_own_kernel
from vision_encoder.kernels.mlp import activated
from vision_encoder.kernels.norm import embedded_norm, shifted, shifted_norm
from vision_encoder.timm_parts import VisionTransformer


def applies(vit: VisionTransformer, tiles: Tensor) -> bool:
    """Whether `encode` may stand in for `vit.forward_features`: no gradients, and every projection as it was built."""
    blocks, embed = cast(Any, vit.blocks), cast(Any, vit.patch_embed)
    if torch.is_grad_enabled() or not tiles.is_cuda or not len(tiles) or embed.proj.weight.dtype == torch.float64:
        return False
    projections = (p for block in blocks for p in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2))
    return all(type(projection) is nn.Linear and not projection._forward_hooks for projection in projections)


def encode(vit: VisionTransformer, tiles: Tensor) -> Tensor:
    """`vit.forward_features(tiles)` without `vit.norm`: uint8 [n, 3, S, S] to [n, 1 + patches**2, hidden]."""
    v = cast(Any, vit)
    tokens, hidden = v.pos_embed.shape[1:]
    count, head = len(tiles), hidden // v.blocks[0].attn.num_heads
    if not has_own_kernel(tiles.device, v.pos_embed.dtype, head):
        tiles = _filled_up(tiles)  # the library plans attention anew for every size
    stream = embedded_norm(v.patch_embed(tiles), v.cls_token[0, 0], v.pos_embed[0], v.norm_pre)
    return _blocks(v.blocks, stream, tokens).view(-1, tokens, hidden)[:count]


def padded(count: int) -> int:
    """Tiles that `count` are filled up to, a fifth more at most, where every size has its price.

    Up to 8 every number, up to 16 the even ones, up to 128 multiples of four, then of sixteen.
    """
    step = 1 if count <= 8 else 2 if count <= 16 else 4 if count <= 128 else 16
    return -(-count // step) * step


def _filled_up(tiles: Tensor) -> Tensor:
    spare = padded(len(tiles)) - len(tiles)
    return torch.cat((tiles, tiles.new_zeros(spare, *tiles.shape[1:]))) if spare else tiles


def _blocks(blocks: Any, stream: Tensor, tokens: int) -> Tensor:
    """The blocks over `stream` [n * tokens, hidden], which is overwritten."""
    # Row 2 i is the sum of the biases before block i, row 2 i + 1 that before its MLP.
    biases = torch.stack([bias for block in blocks for bias in (block.attn.proj.bias, block.mlp.fc2.bias)])
    shifts = F.pad(biases.cumsum(0, dtype=torch.float32), (0, 0, 1, 0))  # [2 * blocks + 1, hidden]
    for i, block in enumerate(blocks):
        qkv = block.attn.qkv(shifted_norm(stream, shifts[2 * i], block.norm1))
        stream.addmm_(attention(qkv, tokens, block.attn.num_heads), block.attn.proj.weight.T)
        h = activated(shifted_norm(stream, shifts[2 * i + 1], block.norm2), block.mlp.fc1, block.mlp.act)
        stream.addmm_(h, block.mlp.fc2.weight.T)
    return shifted(stream, shifts[-1])
