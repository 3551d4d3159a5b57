"""FP8: weights in e4m3 with one scale for every output channel, and activations rounded to e4m3 as they come."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from text_backbone.kernels import row_scaled
from text_backbone.kernels.row_scaled import reference
from text_backbone.part import Part
from text_backbone.quantization.finite import checked


class FP8(NamedTuple):
    """A quantised matrix [rows, columns], or several in leading dimensions.

    codes: float8_e4m3fn [..., rows, columns]. scales: float32 [..., rows], a row's largest magnitude over 448.
    """

    codes: Tensor
    scales: Tensor


def empty(lead: tuple[int, ...], rows: int, columns: int, device: torch.device | str | None = None) -> FP8:
    """Room for matrices [*lead, rows, columns], uninitialised."""
    return FP8(
        torch.empty(*lead, rows, columns, dtype=torch.float8_e4m3fn, device=device),
        torch.empty(*lead, rows, dtype=torch.float32, device=device),
    )


def quantize(matrix: Tensor) -> FP8:
    """One matrix [rows, columns] of any float dtype, on its device. ValueError if a value is not finite."""
    return FP8(*reference.row_codes(checked(matrix)))


def cut(name: str, whole: Tensor, part: Part) -> Tensor:
    """A view of what a part of a matrix has of the field `name` of the whole: a row's scale is that of its parts."""
    return part.of(whole)


def dequantize(weight: FP8, columns: int, dtype: torch.dtype) -> Tensor:
    """[..., rows, columns] in `dtype`, from products taken in float32."""
    return reference.values(weight.codes, weight.scales, dtype)


def largest(weight: FP8, columns: int) -> Tensor:
    """The magnitude, in float32, that no value is above."""
    return weight.scales.abs().max() * reference.MOST


def linear(weight: FP8, columns: int, x: Tensor) -> Tensor:
    """Rows x [T, columns] times the matrix, or the matrices one below the other: [T, rows] in x's dtype."""
    return row_scaled.linear(x, weight.codes.flatten(0, -2), weight.scales.flatten())
