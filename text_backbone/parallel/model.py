"""A rank's part of a decoder."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from text_backbone.cache import HybridCache
from text_backbone.config import LIGHTNING, TextConfig
from text_backbone.layer import DecoderLayer
from text_backbone.model import MiniMaxText
from text_backbone.packed import Packed
from text_backbone.parallel.collectives import Collectives
from text_backbone.parallel.layout import Layout
from text_backbone.parallel.modules import (
    Received,
    Sent,
    SplitEmbedding,
    SplitHead,
    SplitLightningAttention,
    SplitMoE,
    SplitSoftmaxAttention,
)
from text_backbone.quantization import quantize_backbone


class SplitText(MiniMaxText):
    """One rank's part of a `MiniMaxText`, whose every method is called by all ranks with the same arguments.

    All get the same results, which are those of one process to within rounding. `config` is that of the part: a
    `HybridCache` made with it is this rank's. For inference only.

    Attributes:
        layout: what is here.
        group: the other ranks.
    """

    def __init__(self, layout: Layout, group: Collectives, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(layout.config, device="meta", dtype=dtype)
        self.layout, self.group, self.config = layout, group, layout.local
        self.embed_tokens = SplitEmbedding(layout, group, dtype=dtype)
        self.lm_head = SplitHead(layout, group, dtype=dtype)
        if layout.shares("layers"):
            self.layers = nn.ModuleList(list(self.layers)[slice(*layout.layers)])
            self.norm = Sent(layout, group, dtype=dtype)
            if layout.layers[0]:
                self.layers[0].input_layernorm = Received(group)
            return
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            if layout.config.attn_type_list[i] == LIGHTNING:
                layer.self_attn = SplitLightningAttention(layout, group, i, dtype=dtype)
            else:
                layer.self_attn = SplitSoftmaxAttention(layout, group, dtype=dtype)
            layer.block_sparse_moe = SplitMoE(layout, group, dtype=dtype)

    def forward(
        self,
        embeds: Tensor,
        packed: Packed,
        cache: HybridCache | None = None,
        router_logits: list[Tensor] | None = None,
    ) -> Tensor:
        """As of `MiniMaxText`. ValueError also if `router_logits` are asked for of layers that are on several ranks."""
        if router_logits is not None and self.layout.shares("layers"):
            raise ValueError("router_logits: no rank has those of all layers with placement 'layers'")
        return super().forward(embeds, packed, cache, router_logits)


def split_backbone(
    config: TextConfig,
    group: dist.ProcessGroup | None = None,
    placement: str = "tensor",
    *,
    quantization: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> SplitText:
    """This rank's part of a decoder, its weights uninitialised; `weights.released_tensors` load them.

    Called by all ranks of the group, with the same arguments but for the device.

    Args:
        config: of the whole.
        group: the ranks; None for all processes of `torch.distributed`.
        placement: one of `layout.PLACEMENTS`.
        quantization: None, "int8", "fp8" or "nf4". Parts are those of the whole quantised matrices, so that the ranks
            compute what one process does. With FP8 activations are rounded with the largest of the columns that are
            here, so that where columns are split (`out_proj`, `o_proj`, `w2`) results differ by FP8's rounding.
        device: of this rank.
        dtype: of what is not quantised.

    Raises:
        ValueError: if the decoder cannot be split so over so many ranks.
    """
    place = torch.get_default_device() if device is None else torch.device(device)
    layout = Layout(config, placement, dist.get_rank(group), dist.get_world_size(group))
    model = SplitText(layout, Collectives(group, place), dtype=dtype)
    if quantization is not None:
        quantize_backbone(model, quantization, layout.part)
    return model.to_empty(device=place).requires_grad_(False)
