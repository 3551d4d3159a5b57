"""The mixture-of-experts layer and a projection with quantised weights, each beside the same in 16 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from text_backbone.kernels.moe import expert_mlp, reference, route
from text_backbone.quantization import Quantized
from vl.bench.formats import NAMES, product_work, random_weight
from vl.bench.ops.lightning import by_reference
from vl.bench.ops.moe import TOP_K, layer_weights, moe_work
from vl.bench.records import OURS, REFERENCE, Call, Case, Contest, Setting

PLAIN = "not quantised"


def cases(setting: Setting) -> list[Case]:
    tokens = (256, 16, 1) if setting.small else (16384, 4096, 512, 64, 8, 1)
    made = []
    for form, name in NAMES.items():
        for op, build in ((f"MoE {name}", _layer), (f"projection {name}", _projection)):
            made += [Case(op, f"{n} tokens", n, "tokens", partial(build, setting, form, n), op) for n in tokens]
    return made


@cache
def _experts(setting: Setting, form: str) -> tuple[Quantized, Quantized]:
    """w13 and w2 of other values than those that are not quantised, of the same shapes."""
    _, w13, w2 = layer_weights(setting)
    made = [random_weight(form, w.shape[:-2], w.shape[-2], w.shape[-1], w.device, w.dtype) for w in (w13, w2)]
    return made[0], made[1]


def _layer(setting: Setting, form: str, tokens: int) -> Contest:
    gate, *plain = layer_weights(setting)
    stored = _experts(setting, form)
    _, hidden, inner = plain[1].shape
    x = torch.randn(tokens, hidden, device=setting.device, dtype=setting.dtype)
    used = reference.route(x, gate, TOP_K)[1].unique().numel()
    work = moe_work(tokens, used, hidden, inner, x.element_size(), form=form)

    def layer(w13: Tensor | Quantized, w2: Tensor | Quantized) -> Tensor:
        weights, chosen, _ = route(x, gate, TOP_K)
        return expert_mlp(x, w13, w2, weights, chosen)

    return Contest(work.floor, _beside(partial(layer, *stored), partial(layer, *plain)), how=_how(tokens))


@cache
def _matrices(setting: Setting, form: str) -> tuple[Quantized, Tensor]:
    """A quantised matrix of the size of lightning's qkv_proj, and one that is not."""
    rows, columns = (192, 64) if setting.small else (24576, 6144)
    plain = torch.empty(rows, columns, device=setting.device, dtype=setting.dtype).normal_(std=columns**-0.5)
    return random_weight(form, (), rows, columns, setting.device, setting.dtype), plain


def _projection(setting: Setting, form: str, tokens: int) -> Contest:
    stored, plain = _matrices(setting, form)
    rows, columns = plain.shape
    x = torch.randn(tokens, columns, device=setting.device, dtype=setting.dtype)
    moved = tokens * (rows + columns) * x.element_size()
    work = product_work(rows * columns, tokens, moved, x.element_size(), form)
    ours, torchs = partial(stored.linear, (), x), partial(F.linear, x, plain)
    return Contest(work.floor, _beside(ours, torchs), how=_how(tokens))


def _beside(ours: Call, plain: Call) -> dict[str, Callable[[], Sequence[Call]]]:
    return {OURS: lambda: [ours], REFERENCE: lambda: [by_reference(ours)], PLAIN: lambda: [plain]}


def _how(tokens: int) -> str:
    return "graph" if tokens <= 64 else "device"
