"""The mixture-of-experts layer and projections with quantised weights, each beside the same in 16 bits."""

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
from vl.bench.timing import rotations

PLAIN = "not quantised"
FEW = 64  # tokens of a step of writing
IN, OUT = "qkv_proj", "out_proj"  # of lightning attention, whose sizes follow: rows, columns
FULL = {IN: (24576, 6144), OUT: (6144, 8192)}
SMALL = {IN: (192, 64), OUT: (64, 128)}


def cases(setting: Setting) -> list[Case]:
    tokens = (256, 16, 1) if setting.small else (16384, 4096, 512, 64, 8, 1)
    made = []
    for form, name in NAMES.items():
        for op, build in (
            (f"MoE {name}", _layer),
            (f"projection {name}", partial(_projection, IN)),
            (f"out projection {name}", partial(_projection, OUT)),
        ):
            made += [Case(op, f"{n} tokens", n, "tokens", partial(build, setting, form, n), op) for n in tokens]
    return made


@cache
def _experts(setting: Setting, form: str) -> tuple[Quantized, Quantized]:
    """w13 and w2 of other values than those that are not quantised, of the same shapes."""
    _, w13, w2 = layer_weights(setting)
    made = [random_weight(form, w.shape[:-2], w.shape[-2], w.shape[-1], w.device, w.dtype) for w in (w13, w2)]
    return made[0], made[1]


def _layer(setting: Setting, form: str, tokens: int) -> Contest:
    """Few tokens are others in every call, for other experts: those of the last call would be found in the cache."""
    gate, *plain = layer_weights(setting)
    stored = _experts(setting, form)
    _, hidden, inner = plain[1].shape
    least = moe_work(tokens, TOP_K, hidden, inner, gate.element_size(), form=form)
    turns = rotations(least.bytes, setting.device) if tokens <= FEW else 1
    rows = torch.randn(turns, tokens, hidden, device=setting.device, dtype=setting.dtype)
    used = sum(reference.route(x, gate, TOP_K)[1].unique().numel() for x in rows) / turns
    work = moe_work(tokens, used, hidden, inner, gate.element_size(), form=form)

    def layer(x: Tensor, w13: Tensor | Quantized, w2: Tensor | Quantized) -> Tensor:
        weights, chosen, _ = route(x, gate, TOP_K)
        return expert_mlp(x, w13, w2, weights, chosen)

    ours, others = [partial(layer, x, *stored) for x in rows], [partial(layer, x, *plain) for x in rows]
    return Contest(work.floor, _beside(ours, others), how=_how(tokens))


@cache
def _matrices(which: str, setting: Setting, form: str) -> tuple[list[Quantized], Tensor]:
    """Quantised matrices of one size, more than a cache holds, and some that are not [count, rows, columns]."""
    rows, columns = SMALL[which] if setting.small else FULL[which]
    device, dtype = setting.device, setting.dtype
    count = rotations(product_work(rows * columns, 0, 0, dtype.itemsize, form).bytes, device)
    several = rotations(rows * columns * dtype.itemsize, device)
    plain = torch.empty(several, rows, columns, device=device, dtype=dtype).normal_(std=columns**-0.5)
    return [random_weight(form, (), rows, columns, device, dtype) for _ in range(count)], plain


def _projection(which: str, setting: Setting, form: str, tokens: int) -> Contest:
    stored, plain = _matrices(which, setting, form)
    rows, columns = plain.shape[1:]
    x = torch.randn(tokens, columns, device=setting.device, dtype=setting.dtype)
    moved = tokens * (rows + columns) * x.element_size()
    work = product_work(rows * columns, tokens, moved, x.element_size(), form)
    ours, torchs = [partial(weight.linear, (), x) for weight in stored], [partial(F.linear, x, w) for w in plain]
    return Contest(work.floor, _beside(ours, torchs), how=_how(tokens))


def _beside(ours: Sequence[Call], plain: Sequence[Call]) -> dict[str, Callable[[], Sequence[Call]]]:
    return {OURS: lambda: ours, REFERENCE: lambda: [by_reference(call) for call in ours], PLAIN: lambda: plain}


def _how(tokens: int) -> str:
    return "graph" if tokens <= FEW else "device"
