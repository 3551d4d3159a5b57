"""Weights in the formats of quantization, as benchmarks take them: random ones, and the work that they make."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from text_backbone.quantization import Quantized
from vl.bench.records import Work
from vl.plan.formats import find_format

LEVEL = 0.5167  # standard deviation of NF4's levels, all equally frequent
WRITERS = ("out_proj", "o_proj", "w2")  # to the residual stream
SMALL = 0.1
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
    """Matrices [*lead, rows, columns] of random values."""
    weight = Quantized(form, tuple(lead), rows, columns, device=device, dtype=dtype)
    fill(weight)
    return weight


@torch.no_grad()
def fill(module: nn.Module, generator: torch.Generator | None = None, name: str = "") -> None:
    """Random numbers for a module's own weights, so that activations stay of order one; those of its parts stay.

    Args:
        name: of the module in a deep model. Matrices that write to the residual stream are small there, or the tokens
            of a batch would become alike from layer to layer, and go to the same experts.
    """
    last = name.rpartition(".")[2]
    if isinstance(module, Quantized):
        _fill_quantized(module, generator, SMALL if last in WRITERS else 1.0)
        return
    for own, weight in module.named_parameters(recurse=False):
        if weight.dim() < 2:
            weight.fill_(0.0 if own == "bias" else 1.0)
            continue
        gain = SMALL if name and (last in WRITERS or own in WRITERS) else 1.0
        for part in weight if weight.dim() > 2 else (weight,):
            part.normal_(std=gain * weight.shape[-1] ** -0.5, generator=generator)


def fill_named(module: nn.Module, name: str, device: torch.device) -> None:
    """`fill` of a module on `device` and of its parts, alike wherever the model has it: by their names there alone."""
    for where, part in module.named_modules(prefix=name):
        fill(part, numbers_of(where, device), where)


def numbers_of(name: str, device: torch.device) -> torch.Generator:
    """What is drawn for a module of this name in a model."""
    return torch.Generator(device).manual_seed(zlib.crc32(name.encode()))


def _fill_quantized(weight: Quantized, generator: torch.Generator | None, gain: float) -> None:
    """Codes of all kinds, with scales that give values of variance gain^2 / columns of the whole matrix."""
    std = gain * weight.part.whole[1] ** -0.5
    fields: dict[str, Tensor] = weight.at()._asdict()
    codes = fields["codes"]
    if weight.format == "nf4":
        codes.random_(0, 256, generator=generator)
        fields["scales"].random_(0, 256, generator=generator)
        fields["nested"].fill_(0.1 * std / LEVEL)
        fields["offset"].fill_(std / LEVEL)
        return
    spread = 127.0 if weight.format == "int8" else 448.0
    for part in codes.flatten(0, -2).split(1024):
        drawn = torch.randn(part.shape, device=part.device, generator=generator).clamp_(-4, 4)
        part.copy_(drawn.mul_(spread / 4).to(part.dtype))
    fields["scales"].fill_(4 * std / spread)
