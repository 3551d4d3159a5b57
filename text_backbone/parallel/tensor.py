"""Tensor parallelism with gradients: ranks with the same tokens share out attention's heads and the experts' tokens.

All ranks hold the same hidden states and compute norms, routers, embeddings and logits of all tokens. Of attention each
has some heads: what goes in has the sum of all ranks' gradients, and the sum of what comes out goes on. Of the experts'
work each has some tokens, which may go to other ranks from there (`dispatch`). `modules` has the same for inference,
where the experts themselves are cut.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from text_backbone.kernels.moe import route
from text_backbone.kernels.norms import gated_norm_of, row_squares
from text_backbone.lightning import LightningAttention
from text_backbone.model import MiniMaxText
from text_backbone.moe import SparseMoE
from text_backbone.norms import GatedNorm
from text_backbone.parallel.cuts import Cut, cut_parameter
from text_backbone.parallel.dispatch import run_experts
from text_backbone.parallel.exchange import all_reduce, linear_map, rejoin, take_share

# The projections of both attentions, and the dimension along which heads lie.
_DIMENSIONS = {
    **dict.fromkeys(("qkv_proj", "output_gate", "q_proj", "k_proj", "v_proj"), 0),
    **dict.fromkeys(("out_proj", "o_proj"), 1),
}


class SharedGatedNorm(GatedNorm):
    """The columns of some heads; the mean square is over the heads of all ranks."""

    def __init__(self, whole: GatedNorm, group: dist.ProcessGroup) -> None:
        nn.Module.__init__(self)
        self.eps, self.group, self.width = whole.eps, group, len(whole.weight)
        self.weight = cut_parameter(whole.weight, ((0, group),))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x, gate [T, columns] -> [T, columns]."""
        squares = linear_map(row_squares(x), self._sum, self._sum)
        return gated_norm_of(x, gate, self.weight, self.eps, squares, self.width)

    def _sum(self, squares: Tensor) -> Tensor:
        return all_reduce(squares, self.group)


class SharedMoE(SparseMoE):
    """Experts of all tokens, of whose work each rank does that of some tokens. Takes over the modules of `whole`."""

    def __init__(self, whole: SparseMoE, group: dist.ProcessGroup) -> None:
        nn.Module.__init__(self)
        self.top_k, self.gate, self.experts, self.group = whole.top_k, whole.gate, whole.experts, group

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, experts, logits = route(x, self.gate.weight, self.top_k)
        ranks, rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        ends = [len(x) * r // ranks for r in range(ranks + 1)]
        sizes = [ends[r + 1] - ends[r] for r in range(ranks)]
        rows, scales = (take_share(each, sizes, self.group) for each in (x, weights))
        out = run_experts(self.experts, rows, scales, experts[ends[rank] : ends[rank + 1]])
        return rejoin(out, sizes, self.group), logits


def tensor_parallel(model: MiniMaxText, group: dist.ProcessGroup) -> dict[str, Cut]:
    """Shares attention's heads and the experts' tokens out over the ranks of a group, in place: see above.

    Called by all of them, which all hold the whole decoder, and from then on call it in the same order with the same
    arguments. All get the same hidden states, and the same gradients of all weights, but for those that are cut, of
    which each has its part, and for the experts', of which each has a summand.

    Returns:
        How weights are cut, by their names in the decoder.

    Raises:
        ValueError: if the heads cannot be shared out evenly.
    """
    ranks, rank, heads = dist.get_world_size(group), dist.get_rank(group), model.config.num_key_value_heads
    if heads % ranks:
        raise ValueError(f"{heads} heads of keys and values cannot be shared out evenly over {ranks} ranks")
    cuts: dict[str, Cut] = {}
    for i, layer in enumerate(model.layers):
        attention: Any = layer.get_submodule("self_attn")
        for name, projection in attention.named_children():
            if name in _DIMENSIONS:
                cuts[f"layers.{i}.self_attn.{name}.weight"] = cut = ((_DIMENSIONS[name], group),)
                projection.weight = cut_parameter(projection.weight, cut)
                projection.out_features, projection.in_features = projection.weight.shape
        if isinstance(attention, LightningAttention):
            cuts[f"layers.{i}.self_attn.norm.weight"] = ((0, group),)
            attention.norm = SharedGatedNorm(attention.norm, group)
            attention.heads //= ranks
            attention.first_head = rank * attention.heads
        attention.register_forward_pre_hook(_Entry(group))
        attention.register_forward_hook(_Exit(group))
        layer.block_sparse_moe = SharedMoE(layer.get_submodule("block_sparse_moe"), group)  # type: ignore[arg-type]
    return cuts


class _Entry:
    """Before attention, a hook: x as it is, whose gradient is the sum of all ranks'."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = args
        return linear_map(x, lambda rows: rows.view_as(rows), lambda grad: all_reduce(grad, self.group)), *others


class _Exit:
    """After attention, a hook: the sum of all ranks' outputs, whose gradient every rank has."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return linear_map(output, lambda rows: all_reduce(rows, self.group), lambda grad: grad)
