"""Weights in the formats of quantization, as benchmarks take them: random ones, and the work that they make."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import nn

from text_backbone.quantization import Quantized
from vl.bench.records import Work
from vl.plan.formats import find_format

NAMES = {"int8": "int8", "fp8": "FP8", "nf4": "NF4"}


def product_work(values: float, rows: float, moved: float, itemsize: int, form: str | None) -> Work:
    """Of a product of `rows` with each of `values` weights, in a format or of `itemsize` bytes; `moved`: other bytes.

    The ceiling of arithmetic is that of 16 bits: FP8's is twice as high, and so its operations count half.
    """
    size = itemsize if form is None else find_format(form).experts.value
    return Work(values * size + moved, values * rows * (1 if form == "fp8" else 2))


def random_weight(
    form: str, lead: Sequence[int], rows: int, columns: int, device: torch.device, dtype: torch.dtype
) -> Quantized:
    """Matrices [*lead, rows, columns] of normal numbers, quantised one by one."""
    weight = Quantized(form, tuple(lead), rows, columns, device=device, dtype=dtype)
    fill(weight)
    return weight


def fill(model: nn.Module) -> None:
    """Random numbers for all weights of a model that multiply something: normal, products of order one."""
    for weight in model.parameters():
        if weight.dim() > 1:
            for part in weight if weight.dim() > 2 else (weight,):
                part.normal_(std=weight.shape[-1] ** -0.5)
    for module in model.modules():
        if isinstance(module, Quantized):
            for index in product(*map(range, module.lead)):
                matrix = torch.empty(module.rows, module.columns, device=module.device, dtype=module.dtype)
                module.load(index, matrix.normal_(std=module.columns**-0.5))
