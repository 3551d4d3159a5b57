"""FP8: weights in e4m3 with one scale for every output channel, and activations rounded to e4m3 as they come.

e4m3 has three bits after the leading one, exponents from 2^-6 to 2^8, and numbers down to 2^-9 below those.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from text_backbone.quantization.finite import checked

MOST = 448.0  # the largest number that e4m3 holds


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
    return _by_row(checked(matrix))


def dequantize(weight: FP8, columns: int, dtype: torch.dtype) -> Tensor:
    """[..., rows, columns] in `dtype`, from products taken in float32."""
    return weight.codes.float().mul_(weight.scales[..., None]).to(dtype)


def rounded(x: Tensor) -> Tensor:
    """Activations [..., columns] as a product of FP8 takes them: rounded to e4m3 with one scale for every row.

    Same shape and dtype. Gradients pass as if nothing were rounded. A row that is not finite becomes NaN.
    """
    near = dequantize(_by_row(x.detach().float()), x.shape[-1], x.dtype)
    return x + (near - x.detach()) if x.requires_grad else near


def _by_row(values: Tensor) -> FP8:
    """float32 [..., columns] to codes and scales; a row of zeros has the scale 0 and codes of 0."""
    scales = values.abs().amax(dim=-1) / MOST
    codes = (values / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]).clamp_(-MOST, MOST)
    return FP8(codes.to(torch.float8_e4m3fn), scales)
