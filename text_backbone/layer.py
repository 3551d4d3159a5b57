"""One decoder layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from text_backbone.cache import LayerCache
from text_backbone.config import LIGHTNING, TextConfig
from text_backbone.lightning import LightningAttention
from text_backbone.moe import SparseMoE
from text_backbone.norms import ResidualNorm
from text_backbone.packed import Packed
from text_backbone.softmax import SoftmaxAttention


class DecoderLayer(nn.Module):
    """Attention and mixture of experts, with the norms after the residual sums.

        x = rms_norm(x; input_layernorm);           x = alpha_attn x + beta_attn attention(x)
        x = rms_norm(x; post_attention_layernorm);  x = alpha_mlp x + beta_mlp moe(x)

    The residual branch starts from the normalised input. A sum is only ever used normalised, so `forward` runs from
    one norm to the next: it takes the output of its own `input_layernorm` and ends with the norm of what follows.
    """

    def __init__(
        self,
        config: TextConfig,
        layer: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.mlp_alpha, self.mlp_beta = config.mlp_alpha, config.mlp_beta
        self.self_attn: LightningAttention | SoftmaxAttention
        if config.attn_type_list[layer] == LIGHTNING:
            self.self_attn = LightningAttention(config, layer, device=device, dtype=dtype)
            self.attn_alpha, self.attn_beta = config.linear_attention_alpha, config.linear_attention_beta
        else:
            self.self_attn = SoftmaxAttention(config, device=device, dtype=dtype)
            self.attn_alpha, self.attn_beta = config.full_attention_alpha, config.full_attention_beta
        self.block_sparse_moe = SparseMoE(config, device=device, dtype=dtype)
        self.input_layernorm = ResidualNorm(config.hidden_size, config.rms_norm_eps, device=device, dtype=dtype)
        self.post_attention_layernorm = ResidualNorm(
            config.hidden_size, config.rms_norm_eps, device=device, dtype=dtype
        )

    def forward(
        self, x: Tensor, packed: Packed, table: Tensor, memory: LayerCache | None, next_norm: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """One layer, from after its input norm to after the next norm.

        Args:
            x: [T, hidden], normalised.
            table: float32 [T, rotary_dim], cosines and sines of the positions.
            memory: this layer's part of the cache.
            next_norm: the next layer's `input_layernorm` or the final norm, a `ResidualNorm` or what stands for it.

        Returns:
            [T, hidden], normalised, and the router logits float32 [T, E].
        """
        y = self.self_attn(x, packed, table, memory)
        x = self.post_attention_layernorm(x, y, self.attn_alpha, self.attn_beta)
        y, router_logits = self.block_sparse_moe(x)
        return next_norm(x, y, self.mlp_alpha, self.mlp_beta), router_logits
