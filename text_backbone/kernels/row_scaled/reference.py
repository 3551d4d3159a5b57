"""Products with matrices of eight bits a value and one float32 scale for every row: int8 and FP8 (e4m3).

With FP8 the rows that are multiplied are rounded to e4m3 too, each with a scale of its own. e4m3 has three bits after
the leading one, exponents from 2^-6 to 2^8, and numbers down to 2^-9 below those.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 448.0  # the largest number that e4m3 holds


def linear(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """Rows times a matrix: x W^T with W = codes * scales[:, None], and with x `rounded` where the codes are e4m3.

    Args:
        x: [T, columns], any float dtype.
        codes: int8 or float8_e4m3fn [rows, columns].
        scales: float32 [rows].

    Returns:
        [T, rows] in `x`'s dtype. Gradients reach x as if it were not rounded.
    """
    return F.linear(rounded(x) if codes.dtype == torch.float8_e4m3fn else x, values(codes, scales, x.dtype))


def values(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """What codes [..., columns] with scales [...] stand for, in `dtype`, from products taken in float32."""
    return codes.float().mul_(scales[..., None]).to(dtype)


def rounded(x: Tensor) -> Tensor:
    """Activations [..., columns] rounded to e4m3 with one scale for every row.

    Same shape and dtype. Gradients pass as if nothing were rounded. A row that is not finite becomes NaN.
    """
    near = values(*row_codes(x.detach()), x.dtype)
    return x + (near - x.detach()) if x.requires_grad else near


def per(largest: Tensor, most: float) -> Tensor:
    """Rows' largest magnitudes over the largest code; by a plain number CUDA would divide less exactly than a CPU."""
    return largest / torch.full_like(largest, most)


def row_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., columns] in any float dtype to float8_e4m3fn codes and float32 scales [...]: largest magnitude over 448.

    A row of zeros has the scale 0 and codes of 0.
    """
    wide = x.float()
    scales = per(wide.abs().amax(dim=-1), MOST)
    codes = (wide / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]).clamp_(-MOST, MOST)
    return codes.to(torch.float8_e4m3fn), scales
