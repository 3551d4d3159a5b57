"""Where the tensors of a rank's decoder lie in those of the whole one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from text_backbone.parallel.layout import Layout
from text_backbone.parallel.model import SplitText
from text_backbone.part import Part
from text_backbone.quantization.stored import Quantized


@dataclass(frozen=True)
class Placed:
    """A parameter or buffer.

    Attributes:
        name: in the whole decoder, a `MiniMaxText`.
        tensor: what is here.
        size: values of the whole tensor.
        view: on `meta`, what is here as a view of the whole tensor.
    """

    name: str
    tensor: Tensor
    size: int
    view: Tensor

    def index(self, value: int) -> int | None:
        """Where a value of the whole tensor, both flat, is in what is here; None if it is elsewhere."""
        rest, found = value - int(self.view.storage_offset()), 0
        if rest < 0:
            return None
        for size, stride in zip(self.view.shape, self.view.stride(), strict=True):
            at, rest = divmod(rest, stride)
            if at >= size:
                return None
            found = found * size + at
        return None if rest else found


def placed(model: SplitText) -> Iterator[Placed]:
    """All tensors of a rank's decoder, in the order of its parameters, and then of its buffers."""
    quantised = {name: module for name, module in model.named_modules() if isinstance(module, Quantized)}
    for name, weight in model.named_parameters():
        yield _placed(model.layout, name, weight, _plain(model.layout, name, weight))
    for name, tensor in model.named_buffers():
        matrix, _, field = name.rpartition(".")
        yield _placed(model.layout, name, tensor, _field(model.layout, quantised[matrix], field))


def _placed(layout: Layout, name: str, tensor: Tensor, view: Tensor) -> Placed:
    released = name if name.startswith("lm_head.") else f"model.{name}"
    whole = layout.whole_name(released).removeprefix("model.")
    return Placed(whole, tensor, view.untyped_storage().nbytes() // view.itemsize, view)


def _plain(layout: Layout, name: str, tensor: Tensor) -> Tensor:
    if not name.endswith((".w13", ".w2")):
        released = name if name.startswith("lm_head.") else f"model.{name}"
        part = layout.part(released, tuple(tensor.shape)) or Part.all_of(tuple(tensor.shape))
        return part.of(_whole(part.whole))
    *lead, rows, columns = tensor.shape
    matrix = "w2" if name.endswith(".w2") else "w1"
    part = layout.part(matrix, (rows, columns)) or Part.all_of((rows, columns))
    return _stack(layout, tuple(lead), part.of(_whole(part.whole)), part.whole)


def _field(layout: Layout, weight: Quantized, field: str) -> Tensor:
    whole = getattr(Quantized(weight.format, (), *weight.part.whole, device="meta", dtype=weight.dtype), field)
    view = weight.cut(field, whole)
    return _stack(layout, weight.lead, view, tuple(whole.shape)) if weight.lead else view


def _stack(layout: Layout, lead: tuple[int, ...], view: Tensor, whole: tuple[int, ...]) -> Tensor:
    """A view of one matrix [*whole] repeated over this rank's experts, `lead[0]` of all of them."""
    experts, (first, _) = layout.config.num_local_experts, layout.experts
    stacked = _whole((experts, *lead[1:], *whole))
    strides = stacked.stride()[: len(lead)]
    offset = first * strides[0] + view.storage_offset()
    return stacked.as_strided((*lead, *view.shape), (*strides, *view.stride()), offset)


def _whole(shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8, device="meta")
