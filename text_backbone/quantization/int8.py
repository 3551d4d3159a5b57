"""Weight-only int8: round(weight / scale), with one scale for every output channel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from text_backbone.kernels import row_scaled
from text_backbone.kernels.row_scaled import reference
from text_backbone.part import Part
from text_backbone.quantization.finite import checked

MOST = 127  # the codes are symmetric: -128 is not used


class Int8(NamedTuple):
    """A quantised matrix [rows, columns], or several in leading dimensions.

    codes: int8 [..., rows, columns]. scales: float32 [..., rows], a row's largest magnitude over 127.
    """

    codes: Tensor
    scales: Tensor


def empty(lead: tuple[int, ...], rows: int, columns: int, device: torch.device | str | None = None) -> Int8:
    """Room for matrices [*lead, rows, columns], uninitialised."""
    return Int8(
        torch.empty(*lead, rows, columns, dtype=torch.int8, device=device),
        torch.empty(*lead, rows, dtype=torch.float32, device=device),
    )


def quantize(matrix: Tensor) -> Int8:
    """One matrix [rows, columns] of any float dtype, on its device. ValueError if a value is not finite."""
    values = checked(matrix)
    scales = reference.per(values.abs().amax(dim=1), MOST)
    # A row of zeros has the scale 0 and codes of 0.
    codes = (values / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round_().clamp_(-MOST, MOST)
    return Int8(codes.to(torch.int8), scales)


def cut(name: str, whole: Tensor, part: Part) -> Tensor:
    """A view of what a part of a matrix has of the field `name` of the whole: a row's scale is that of its parts."""
    return part.of(whole)


def dequantize(weight: Int8, columns: int, dtype: torch.dtype) -> Tensor:
    """[..., rows, columns] in `dtype`, from products taken in float32."""
    return reference.values(weight.codes, weight.scales, dtype)


def largest(weight: Int8, columns: int) -> Tensor:
    """The magnitude, in float32, that no value is above."""
    return weight.scales.abs().max() * MOST


def linear(weight: Int8, columns: int, x: Tensor) -> Tensor:
    """Rows x [T, columns] times the matrix, or the matrices one below the other: [T, rows] in x's dtype."""
    return row_scaled.linear(x, weight.codes.flatten(0, -2), weight.scales.flatten())
