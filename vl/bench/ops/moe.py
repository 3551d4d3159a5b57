"""The mixture-of-experts layer, router included, beside torch's grouped matmul and transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from text_backbone.kernels.moe import expert_mlp, reference, route
from vl.bench.formats import product_work
from vl.bench.ops.lightning import by_reference
from vl.bench.records import OURS, REFERENCE, Call, Case, Contest, Setting, Work

OP, TRAINED = "MoE layer", "MoE forward + backward"
TOP_K = 2


def cases(setting: Setting) -> list[Case]:
    tokens = (256, 16, 1) if setting.small else (16384, 4096, 512, 64, 8, 1)
    trained = (256, 128) if setting.small else (16384, 4096)
    return [
        *(Case(OP, f"{n} tokens", n, "tokens", partial(_layer, setting, n), OP) for n in tokens),
        *(Case(TRAINED, f"{n} tokens", n, "tokens", partial(_trained, setting, n), TRAINED) for n in trained),
    ]


def moe_work(
    tokens: int, used: float, hidden: int, inner: int, itemsize: int, top_k: int = TOP_K, form: str | None = None
) -> Work:
    """The weights of the `used` experts, in a format, and the tokens in and out; three products per assignment."""
    values = used * 3 * inner * hidden
    return product_work(values, tokens * top_k / used, 2 * tokens * hidden * itemsize, itemsize, form)


@cache
def layer_weights(setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """Router [E, hidden], w13 [E, 2, I, hidden] and w2 [E, hidden, I], shared by the group's cases."""
    experts, hidden, inner = (4, 64, 96) if setting.small else (32, 6144, 9216)
    make = partial(torch.empty, device=setting.device, dtype=setting.dtype)
    return (
        make(experts, hidden).normal_(std=hidden**-0.5),
        make(experts, 2, inner, hidden).normal_(std=hidden**-0.5),
        make(experts, hidden, inner).normal_(std=inner**-0.5),
    )


def _layer(setting: Setting, tokens: int) -> Contest:
    gate, w13, w2 = layer_weights(setting)
    _, hidden, inner = w2.shape
    x = torch.randn(tokens, hidden, device=setting.device, dtype=setting.dtype)
    used = reference.route(x, gate, TOP_K)[1].unique().numel()
    work = moe_work(tokens, used, hidden, inner, x.element_size())

    def ours() -> Tensor:
        weights, chosen, _ = route(x, gate, TOP_K)
        return expert_mlp(x, w13, w2, weights, chosen)

    return Contest(
        work.floor,
        {
            OURS: lambda: [ours],
            REFERENCE: lambda: [by_reference(ours)],
            "torch grouped_mm": lambda: [partial(_grouped, x, gate, w13, w2)],
            "transformers": lambda: _transformers(x, gate, w13, w2),
        },
        how="graph" if tokens <= 64 else "device",
    )


@torch.inference_mode(False)
def _trained(setting: Setting, tokens: int) -> Contest:
    """The layer and its gradients for tokens, router and experts."""
    leaves = [weight.detach().requires_grad_() for weight in layer_weights(setting)]
    gate, w13, w2 = leaves
    _, hidden, inner = w2.shape
    x = torch.randn(tokens, hidden, device=setting.device, dtype=setting.dtype, requires_grad=True)
    grad = torch.randn_like(x)
    used = reference.route(x, gate, TOP_K)[1].unique().numel()
    once = moe_work(tokens, used, hidden, inner, x.element_size())
    # The weights are read twice, and their gradients written once; each product has two more in the backward.
    work = Work(3 * once.bytes, 3 * once.flops)

    @torch.inference_mode(False)
    def ours() -> object:
        weights, chosen, _ = route(x, gate, TOP_K)
        return torch.autograd.grad(expert_mlp(x, w13, w2, weights, chosen), [x, *leaves], grad)

    @torch.inference_mode(False)
    def grouped() -> object:
        return torch.autograd.grad(_grouped(x, gate, w13, w2), [x, *leaves], grad)

    contenders: dict[str, Callable[[], Sequence[Call]]] = {
        OURS: lambda: [ours],
        REFERENCE: lambda: [by_reference(ours)],
        "torch grouped_mm": lambda: [grouped],
    }
    return Contest(work.floor, contenders)


def _grouped(x: Tensor, gate: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """The layer as one would write it with torch alone."""
    weights, experts = F.linear(x, gate).float().softmax(dim=-1).topk(TOP_K, dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    chosen, order = experts.flatten().sort(stable=True)  # [T * k], grouped by expert
    ends = torch.searchsorted(chosen, torch.arange(1, len(w2) + 1, device=x.device)).int()
    product = getattr(F, "grouped_mm", None) or torch._grouped_mm
    a, b = product(x[order // TOP_K], w13.flatten(1, 2).mT, offs=ends).chunk(2, dim=-1)
    y = product(F.silu(a) * b, w2.mT, offs=ends)
    y = torch.empty_like(y).index_copy_(0, order, y).unflatten(0, (-1, TOP_K))
    return (y * weights[..., None]).sum(dim=1).to(x.dtype)


def _transformers(x: Tensor, gate: Tensor, w13: Tensor, w2: Tensor) -> Sequence[Call]:
    """transformers' block on the same weights, with its own choice of experts kernel for a model."""
    from transformers import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxSparseMoeBlock

    experts, hidden, inner = w2.shape
    config: Any = MiniMaxConfig(
        hidden_size=hidden, intermediate_size=inner, num_local_experts=experts, num_experts_per_tok=TOP_K
    )
    config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        block = MiniMaxSparseMoeBlock(config)
    for owner, name, value in (
        (block.gate, "weight", gate),
        (block.experts, "gate_up_proj", w13.flatten(1, 2)),
        (block.experts, "down_proj", w2),
    ):
        setattr(owner, name, nn.Parameter(value, requires_grad=False))
    return [partial(block.eval(), x[None])]
