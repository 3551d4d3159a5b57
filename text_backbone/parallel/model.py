"""A rank's part of a decoder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from text_backbone.cache import HybridCache, LayerCache
from text_backbone.config import LIGHTNING, TextConfig
from text_backbone.layer import DecoderLayer
from text_backbone.model import MiniMaxText
from text_backbone.packed import Packed
from text_backbone.parallel.collectives import Collectives
from text_backbone.parallel.context import ContextShard
from text_backbone.parallel.context_modules import context_parallel, gather_rows
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
from text_backbone.parallel.pages import ShardedCache
from text_backbone.quantization import quantize_backbone
from text_backbone.spill import place_spilled


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
        if not self.layout.shares("layers"):
            return super().forward(embeds, packed, cache, router_logits)
        return self._run_of_layers(embeds, packed, cache)

    def _run_of_layers(self, embeds: Tensor, packed: Packed, cache: HybridCache | None) -> Tensor:
        """Whatever memory this rank lacks, it takes what the rank before sends, and passes on as much."""
        first, last = self.layers[0].get_submodule("input_layernorm"), self.norm
        assert isinstance(last, Sent)
        last.due = True
        if isinstance(first, Received):
            first.due = True
        out = self.group.attempt(partial(super().forward, embeds, packed, cache), lambda: embeds)
        if isinstance(first, Received) and first.due:
            first(embeds)
        return last.passed_on(out) if last.due else out


class ContextText(SplitText):
    """All of a `MiniMaxText` on every rank; ranks share out the tokens of a prompt, a pass at a time.

    A pass over `least` tokens for each rank goes so, with a cache if it is over one sequence whose pages are all here,
    and ends with its hidden states and its cache on all ranks. Other passes, as of decode, every rank computes alone.
    """

    least = 256

    def __init__(self, layout: Layout, group: Collectives, *, dtype: torch.dtype | None = None) -> None:
        MiniMaxText.__init__(self, layout.config, device="meta", dtype=dtype)
        self.layout, self.group = layout, group
        context_parallel(self, group.group, group.device)

    def forward(
        self,
        embeds: Tensor,
        packed: Packed,
        cache: HybridCache | None = None,
        router_logits: list[Tensor] | None = None,
    ) -> Tensor:
        if router_logits is not None:
            return super().forward(embeds, packed, cache, router_logits)
        if cache is None:
            return self._shared(embeds, packed, None)
        here = cache.on_device(packed.slot_ids) and not isinstance(cache, ShardedCache)
        if packed.sequences > 1 or not here:
            return super().forward(embeds, packed, cache)
        cache.check(packed)
        outs, start = [], 0
        for mark in packed.marks:
            outs.append(self._shared(embeds[start : mark.row], packed.part(start, mark.row), cache))
            cache.keep(mark.slot, mark.place)
            start = mark.row
        if start < packed.tokens:
            outs.append(self._shared(embeds[start:], packed.part(start, packed.tokens) if start else packed, cache))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _shared(self, embeds: Tensor, packed: Packed, cache: HybridCache | None) -> Tensor:
        """Hidden states of a batch without marks."""
        rank, ranks = self.layout.rank, self.layout.ranks
        if packed.tokens < self.least * ranks:
            return super().forward(embeds, packed, cache)
        shard = ContextShard.share(
            packed.lengths, rank, ranks, cached=None if cache is None else packed, device=embeds.device
        )
        memory = None if cache is None else cast(HybridCache, _Whole(cache, packed))
        return gather_rows(super().forward(shard.take(embeds), shard, memory), shard, self.group.group)


class _Whole:
    """A cache as a pass over a part of a batch sees it: it takes all of the batch."""

    def __init__(self, cache: HybridCache, whole: Packed) -> None:
        self.cache, self.whole = cache, whole

    def layers(self, packed: Packed) -> Iterator[LayerCache]:
        return self.cache.layers(self.whole)


def split_backbone(
    config: TextConfig,
    group: dist.ProcessGroup | None = None,
    placement: str = "tensor",
    *,
    quantization: str | None = None,
    slots: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> SplitText:
    """This rank's part of a decoder, its weights uninitialised; `weights.released_tensors` load them.

    Called by all ranks of the group, with the same arguments but for the device.

    Args:
        config: of the whole.
        group: the ranks; None for all processes of `torch.distributed`.
        placement: one of `layout.PLACEMENTS`. With "context" the part is all of it, see `ContextText`.
        quantization: None, "int8", "fp8" or "nf4". Parts are those of the whole quantised matrices, so that the ranks
            compute what one process does. With FP8 activations are rounded with the largest of the columns that are
            here, so that where columns are split (`out_proj`, `o_proj`, `w2`) results differ by FP8's rounding.
        slots: None for all experts that are here on the device; else as of `spill.spill_backbone`, of those of a layer
            that are here.
        device: of this rank.
        dtype: of what is not quantised.

    Raises:
        ValueError: if the decoder cannot be split so over so many ranks, or as `spill.SpilledExperts`.
    """
    place = torch.get_default_device() if device is None else torch.device(device)
    layout = Layout(config, placement, dist.get_rank(group), dist.get_world_size(group))
    kind = ContextText if placement == "context" else SplitText
    model = kind(layout, Collectives(group, place), dtype=dtype)
    if quantization is not None:
        quantize_backbone(model, quantization, layout.part)
    if slots is None:
        return model.to_empty(device=place).requires_grad_(False)
    place_spilled(model, slots, place)
    return model
