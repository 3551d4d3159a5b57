"""The mixture-of-experts MLP in Triton: what `reference` specifies, on a GPU, without waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from text_backbone.kernels.moe import backward as gradients
from text_backbone.kernels.moe import decode
from text_backbone.kernels.moe.configs import GEMV_DOWN, GEMV_UP, inference_tiles, training_tile
from text_backbone.kernels.moe.grouped import combine, linear, up
from text_backbone.kernels.moe.router import Route, route_forward
from text_backbone.kernels.moe.sort import Groups, group


def route(x: Tensor, gate: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Same as `reference.route`."""
    if torch.is_grad_enabled() and (x.requires_grad or gate.requires_grad):
        return Route.apply(x, gate, top_k)
    return route_forward(x, gate, top_k)


def expert_mlp(x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
    """Same as `reference.expert_mlp`."""
    if not len(x):
        return x.clone()
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, w13, w2, weights)):
        return ExpertMLP.apply(x, w13, w2, weights, experts)
    return _infer(x.contiguous(), w13.contiguous(), w2.contiguous(), weights.contiguous(), experts.contiguous())


def _infer(x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
    if experts.numel() <= GEMV_UP.most:
        return decode.down(decode.up(x, w13, experts, GEMV_UP), w2, weights, experts, GEMV_DOWN)
    first, second = inference_tiles(experts.numel(), len(w2), x.dtype, x.device)
    groups = group(experts, len(w2))
    h, _ = up(x, w13, groups, experts.shape[1], first, save=False)
    return combine(linear(h, w2, groups, second), weights, groups)[0]


class ExpertMLP(torch.autograd.Function):
    """`reference.expert_mlp` with gradients for x, w13, w2 and weights. Keeps w1 x and w3 x of every assignment."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        x, w13, w2, weights = x.contiguous(), w13.contiguous(), w2.contiguous(), weights.contiguous()
        groups = group(experts, len(w2))
        h, ab = up(x, w13, groups, experts.shape[1], training_tile("up", x), save=True)
        y = linear(h, w2, groups, training_tile("down", x))
        ctx.save_for_backward(x, w13, w2, weights, ab, *groups)
        return combine(y, weights, groups)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, w13, w2, weights, ab, *rest = ctx.saved_tensors
        groups, dout = Groups(*rest), dout.contiguous()
        dab, wh, partial = gradients.dh(dout, w2, ab, weights, groups, training_tile("dh", x))
        rows = linear(dab.flatten(1), w13, groups, training_tile("dx", x), transposed=True)
        dx, dweights = combine(rows, weights, groups, weighted=False, partial=partial)
        if not any(ctx.needs_input_grad[1:3]):
            return dx, None, None, dweights, None
        dw13, dw2 = gradients.weight_gradients(x, dout, dab, wh, groups, weights.shape[1], training_tile("dw", x))
        return dx, dw13, dw2, dweights, None
