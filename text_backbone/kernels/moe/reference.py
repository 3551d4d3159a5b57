"""Mixture of experts: the choice of experts per token, and their gated MLPs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from text_backbone.kernels.moe.stored import Product, Stored

_BLOCK = 256


def route(x: Tensor, gate: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose `top_k` experts per token: softmax over all experts, the largest k, renormalised to sum 1.

    Args:
        x: [T, hidden].
        gate: [E, hidden], the router's weight.

    Returns:
        weights float32 [T, k], experts int64 [T, k] (largest weight first) and the router logits float32 [T, E].
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        logits = F.linear(x.to(wide), gate.to(wide))
        weights, experts = logits.softmax(dim=-1).topk(top_k, dim=-1)
        return weights / weights.sum(dim=-1, keepdim=True), experts, logits


def expert_mlp(x: Tensor, w13: Tensor | Stored, w2: Tensor | Stored, weights: Tensor, experts: Tensor) -> Tensor:
    """Weighted sum over a token's experts of `w2(SiLU(w1 x) * w3 x)`.

    Tokens are sorted by expert, so that each expert is one matrix product over its own tokens; the group sizes are
    the one thing read back to the host.

    Args:
        x: [T, hidden].
        w13: [E, 2, I, hidden], w1 then w3 of every expert.
        w2: [E, hidden, I]. Either may be stored otherwise; one expert at a time is then unpacked.
        weights: float32 [T, k].
        experts: int64 [T, k].

    Returns:
        [T, hidden] in `x`'s dtype; the sum over experts is taken in float32, in the order of `experts`.
    """
    tokens, top_k = experts.shape
    chosen, order = experts.flatten().sort(stable=True)  # [T * k], grouped by expert
    ups, downs = _products(w13), _products(w2)
    bounds = torch.searchsorted(chosen, torch.arange(1, len(downs) + 1, device=x.device))
    sizes = bounds.diff(prepend=bounds.new_zeros(1)).tolist()
    groups = x.index_select(0, order // top_k).split(sizes)
    parts = [_expert(group, up, down) for group, up, down in zip(groups, ups, downs, strict=True) if len(group)]
    sorted_out = torch.cat(parts)  # [T * k, hidden]
    out = torch.empty_like(sorted_out).index_copy_(0, order, sorted_out).view(tokens, top_k, -1)
    return (out * weights[:, :, None]).sum(dim=1).to(x.dtype)


def _products(weight: Tensor | Stored) -> Sequence[Product]:
    """Per expert, the product with its matrix."""
    if not isinstance(weight, Tensor):
        return weight.products()
    # unbind, not weight[e]: its backward stacks the gradients once instead of adding E tensors of full size
    return [partial(F.linear, weight=matrix) for matrix in weight.flatten(1, -2).unbind()]


def _expert(x: Tensor, up: Product, down: Product) -> Tensor:
    """One expert's gated MLP of x [n, hidden], by its products with [2 I, hidden] and [hidden, I]."""
    tokens = len(x)
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and tokens > _BLOCK:
        # oneDNN spends longer on preparing for a shape it has not met than on a product of this size.
        x = F.pad(x, (0, 0, 0, -tokens % _BLOCK))
    return down(_swiglu(up(x)))[:tokens]


def _swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up
