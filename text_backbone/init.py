"""Initial weights for training from scratch."""

from __future__ import annotations

import math

import torch
from torch import nn

from text_backbone.layer import DecoderLayer
from text_backbone.lightning import LightningAttention
from text_backbone.model import MiniMaxText


@torch.no_grad()
def init_weights(model: MiniMaxText, *, std: float = 0.02, generator: torch.Generator | None = None) -> None:
    """Fill `model` in place: norms with 1, matrices from a normal distribution of standard deviation `std`.

    The matrices that write into the residual sum (`out_proj`, `o_proj`, `w2`) are narrower by `beta / (sqrt(2) alpha)`:
    DeepNorm's gain (arXiv:2203.00555) for a decoder of N layers is `(8N)^(-1/4)` beside a residual scale
    `alpha = (2N)^(1/4)`, which the released alpha is for its 80 layers.
    """
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=std, generator=generator)
        else:
            nn.init.ones_(weight)
    for layer in model.layers:
        assert isinstance(layer, DecoderLayer)
        attention = layer.self_attn
        out = attention.out_proj if isinstance(attention, LightningAttention) else attention.o_proj
        out.weight.mul_(min(1.0, layer.attn_beta / (math.sqrt(2) * layer.attn_alpha)))
        layer.block_sparse_moe.experts.w2.mul_(min(1.0, layer.mlp_beta / (math.sqrt(2) * layer.mlp_alpha)))
