"""The softmax attention sub-layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from text_backbone.cache import PagedKV
from text_backbone.config import TextConfig
from text_backbone.kernels.rotary import rotary, rotary_to_pages
from text_backbone.kernels.softmax import softmax_attention
from text_backbone.linear import linear, project
from text_backbone.packed import Packed


class SoftmaxAttention(nn.Module):
    """Causal attention with grouped queries and partial rotary embedding."""

    def __init__(
        self, config: TextConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        hidden = config.hidden_size
        inner, kv_inner = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = linear(hidden, inner, device=device, dtype=dtype)
        self.k_proj = linear(hidden, kv_inner, device=device, dtype=dtype)
        self.v_proj = linear(hidden, kv_inner, device=device, dtype=dtype)
        self.o_proj = linear(inner, hidden, device=device, dtype=dtype)

    def forward(self, x: Tensor, packed: Packed, table: Tensor, pages: PagedKV | None) -> Tensor:
        """x [T, hidden] -> [T, hidden]; `table` float32 [T, rotary_dim]; the new keys and values go to `pages`."""
        projected = project(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (each.unflatten(-1, (-1, self.head_dim)) for each in projected)
        if pages is None:
            q, k = rotary(q, k, table)
            out = softmax_attention(q, k, v, packed)
        else:
            q, k = rotary_to_pages(q, k, v, table, pages.keys, pages.values, pages.rows)
            out = pages.attention(q, k, v, packed)
        return self.o_proj(out.flatten(1))
