"""Attention over context ranks, in the place of a whole decoder's: all else of it works on single tokens as it is."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from text_backbone.cache import MarkedStates, PagedKV
from text_backbone.kernels.rotary import rotary
from text_backbone.lightning import LightningAttention
from text_backbone.model import MiniMaxText
from text_backbone.packed import Packed
from text_backbone.parallel.collectives import all_gather
from text_backbone.parallel.context import ContextShard
from text_backbone.parallel.lasp import lasp_attention
from text_backbone.parallel.ring import Messages, ring_attention
from text_backbone.softmax import SoftmaxAttention


class ContextLightningAttention(LightningAttention):
    """LASP+ of a `ContextShard`; any other batch is whole, and goes as before. Takes over the modules of `whole`."""

    def __init__(self, whole: LightningAttention, group: dist.ProcessGroup) -> None:
        nn.Module.__init__(self)
        self.heads, self.layer, self.layers = whole.heads, whole.layer, whole.layers
        self.first_head, self.all_heads = whole.first_head, whole.all_heads
        self.group = group
        for name, child in whole.named_children():
            self.add_module(name, child)

    def forward(self, x: Tensor, packed: Packed, table: Tensor, states: Tensor | MarkedStates | None) -> Tensor:
        if not isinstance(packed, ContextShard):
            return super().forward(x, packed, table, states)
        assert not isinstance(states, MarkedStates)
        out = lasp_attention(self.qkv_proj(x), self.slopes(x.device), packed, self.group, states)
        return self.out_proj(self.norm(out, self.output_gate(x)))


class ContextSoftmaxAttention(SoftmaxAttention):
    """Ring attention of a `ContextShard`; any other batch is whole, and goes as before.

    With a cache the new keys and values, which every rank is to have in its pages, go to all of them first, and each
    attends from its tokens to its own pages: nothing goes round then, whatever is cached.
    """

    def __init__(self, whole: SoftmaxAttention, messages: Messages) -> None:
        nn.Module.__init__(self)
        self.head_dim, self.messages = whole.head_dim, messages
        for name, child in whole.named_children():
            self.add_module(name, child)

    def forward(self, x: Tensor, packed: Packed, table: Tensor, pages: PagedKV | None) -> Tensor:
        if not isinstance(packed, ContextShard):
            return super().forward(x, packed, table, pages)
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotary(q, k, table)
        if pages is None:
            return self.o_proj(ring_attention(q, k, v, packed, self.messages).flatten(1))
        every = gather_rows(torch.stack((k, v), dim=1), packed, self.messages.group)  # [T of all, 2, kv_heads, d]
        for pool, values in zip((pages.keys, pages.values), every.unbind(1), strict=True):
            pool.flatten(0, 1).index_copy_(0, pages.rows, values)
        return self.o_proj(pages.attention(q, k, v, packed.memo(_after_cached)).flatten(1))


def gather_rows(x: Tensor, shard: ContextShard, group: dist.ProcessGroup) -> Tensor:
    """The rows of all ranks [T of the whole batch, ...], on each, of what this one has for its own tokens [T, ...]."""
    most, order = shard.memo(_places)
    message = x.new_zeros(most, *x.shape[1:])
    message[: len(x)] = x
    return all_gather(message, group).flatten(0, 1).index_select(0, order)


def _places(shard: ContextShard) -> tuple[int, Tensor]:
    """The most tokens that a rank has, and int64 [T of all] where each is in messages of so many, end to end."""
    chunks = [[shard.chunks[i] for i in own] for own in shard.held]
    most = max(sum(chunk.length for chunk in own) for own in chunks)
    places = torch.empty(sum(chunk.length for chunk in shard.chunks), dtype=torch.int64)
    for rank, own in enumerate(chunks):
        at = rank * most
        for chunk in own:
            places[chunk.start : chunk.start + chunk.length] = torch.arange(at, at + chunk.length)
            at += chunk.length
    return most, places.to(shard.offsets.device)


def _after_cached(shard: ContextShard) -> Packed:
    """A rank's pieces, each after all that is before it in its sequence, which is in the pages of its slot."""
    assert shard.cached is not None
    packed = Packed.of(shard.lengths, past=[p.start for c in shard.own for p in c.pieces], device=shard.offsets.device)
    slots = shard.cached.slot_ids * packed.sequences
    return replace(packed, slots=shard.cached.slots.expand(packed.sequences).contiguous(), slot_ids=slots)


def context_parallel(model: MiniMaxText, group: dist.ProcessGroup, device: torch.device) -> None:
    """Lets a decoder take `ContextShard`s, in place: the ranks of `group` then compute a batch together.

    Called by all of them, which all hold the whole decoder and call it in the same order, each with its shard of the
    same batch and the embeddings of the tokens there. The gradients of the weights are those of its tokens: the sum
    over the ranks is that of the whole batch. In a pass that is differentiated the embeddings need
    gradients, on all ranks: see `lasp_attention`.

    Args:
        device: of this rank.

    Raises:
        ValueError: if the decoder is split over ranks already.
    """
    messages = Messages(group, device)
    for layer in model.layers:
        attention = layer.get_submodule("self_attn")
        if type(attention) is LightningAttention:
            layer.self_attn = ContextLightningAttention(attention, group)
        elif type(attention) is SoftmaxAttention:
            layer.self_attn = ContextSoftmaxAttention(attention, messages)
        else:
            raise ValueError(f"a decoder with {type(attention).__name__} is split already: give a whole one")
