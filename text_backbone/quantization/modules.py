"""Quantised modules in the place of a decoder's own, which the model's files know nothing of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from text_backbone.config import TextConfig
from text_backbone.kernels.moe import expert_mlp
from text_backbone.layer import DecoderLayer
from text_backbone.linear import Together
from text_backbone.model import MiniMaxText
from text_backbone.moe import Experts
from text_backbone.part import Part
from text_backbone.quantization.stored import FORMATS, Quantized


class QuantizedLinear(Together):
    """In the place of a bias-free `nn.Linear`."""

    def __init__(self, linear: nn.Linear, format: str, part: Part | None = None) -> None:
        super().__init__()
        self.weight = Quantized.of(linear.weight, format, part)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, in] -> [T, out]."""
        return self.weight.linear((), x)

    def together(self, x: Tensor, others: Sequence[nn.Module]) -> list[Tensor] | None:
        weights = [module.weight for module in others if isinstance(module, QuantizedLinear)]
        return self.weight.linears(x, weights) if len(weights) == len(others) else None

    def write(self, y: Tensor, x: Tensor) -> bool:
        return self.weight.linear_to(y, x)


class QuantizedExperts(nn.Module):
    """In the place of `Experts`: `w13` of [E, 2, I, hidden] (w1 then w3) and `w2` of [E, hidden, I]."""

    def __init__(self, experts: Experts, format: str, up: Part | None = None, down: Part | None = None) -> None:
        super().__init__()
        self.w13 = Quantized.of(experts.w13, format, up)
        self.w2 = Quantized.of(experts.w2, format, down)

    def forward(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """x [T, hidden], weights float32 [T, k] and experts int64 [T, k] of `route` -> [T, hidden]."""
        return expert_mlp(x, self.w13, self.w2, weights, experts)


def quantize_backbone(
    model: MiniMaxText, format: str, part: Callable[[str, tuple[int, ...]], Part | None] | None = None
) -> None:
    """Quantise the projections of both attentions and the experts, in place and one at a time.

    The router, the norms, the embeddings and `lm_head` stay as they are. Of a model on `meta` only the shapes change.

    Args:
        model: not quantised yet.
        format: "int8", "fp8" or "nf4".
        part: of a model on `meta` that is a part of another: which part of a whole matrix, by the name of its module
            ("w1" of `w13`) and its shape here, is in the model; None for all of it.

    Raises:
        ValueError: if there is no such format, the model is quantised already, a value is not finite, or the format
            cannot hold a matrix of that size, or such a part of one.
    """
    if format not in FORMATS:
        raise ValueError(f"there is no format {format!r:.80}: use {', '.join(FORMATS)}")
    if (held := format_of(model)) is not None:
        raise ValueError(f"the model is quantised to {held} already")
    for layer in model.layers:
        assert isinstance(layer, DecoderLayer)
        quantize_layer(layer, format, part)


def format_of(model: MiniMaxText) -> str | None:
    """The format that the matrices are in; None if they are not quantised.

    Raises:
        ValueError: if some are in another than others.
    """
    found = {_format(part) for layer in model.layers for part in _swapped(layer)}
    if len(found) > 1:
        raise ValueError(f"its matrices are of several formats: {', '.join(sorted(each or 'none' for each in found))}")
    return found.pop() if found else None


def _swapped(layer: nn.Module) -> list[nn.Module]:
    """What `quantize_layer` puts other modules in the place of, and those."""
    assert isinstance(layer, DecoderLayer)
    projections = [each for each in layer.self_attn.children() if isinstance(each, nn.Linear | QuantizedLinear)]
    return [*projections, layer.block_sparse_moe.experts]


def _format(module: nn.Module) -> str | None:
    return next((each.format for each in module.modules() if isinstance(each, Quantized)), None)


def quantize_layer(
    layer: DecoderLayer, format: str, part: Callable[[str, tuple[int, ...]], Part | None] | None = None
) -> None:
    """`quantize_backbone` of one layer."""

    def of(name: str, weight: Tensor) -> Part | None:
        return part(name, tuple(weight.shape[-2:])) if part is not None else None

    attention, moe = layer.self_attn, layer.block_sparse_moe
    for name, child in list(attention.named_children()):
        if isinstance(child, nn.Linear):
            setattr(attention, name, QuantizedLinear(child, format, of(name, child.weight)))
    parts = of("w1", moe.experts.w13), of("w2", moe.experts.w2)
    moe.set_submodule("experts", QuantizedExperts(moe.experts, format, *parts))


def quantized_backbone(
    config: TextConfig,
    format: str,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> MiniMaxText:
    """A quantised model with room for its weights, uninitialised: one in `dtype` never exists.

    Raises:
        ValueError: if the format cannot hold a matrix of that size.
    """
    model = MiniMaxText(config, device="meta", dtype=dtype)
    quantize_backbone(model, format)
    return model.to_empty(device=torch.get_default_device() if device is None else device)
