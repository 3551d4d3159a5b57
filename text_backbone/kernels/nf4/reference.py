"""What NF4's codes and scales stand for (QLoRA, arXiv:2305.14314, section 3), and products with such matrices.

A matrix is cut, row after row, into blocks of 64 values with a scale each. The scales are quantised in turn, in blocks
of 256, to eight bits of a map whose steps grow with the magnitude.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK, NESTED = 64, 256  # values to a scale, scales to a scale of scales

# Appendix E of the paper: the means of quantiles of N(0, 1), scaled to [-1, 1], zero included.
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@cache
def levels(device: torch.device) -> Tensor:
    """float32 [16], what the codes stand for."""
    return torch.tensor(LEVELS, device=device)


@cache
def pairs(device: torch.device) -> Tensor:
    """float32 [256, 2], what the two codes of every byte stand for: the upper four bits', then the lower's."""
    byte, table = torch.arange(256, device=device), levels(device)
    return torch.stack((table[byte >> 4], table[byte & 15]), dim=1)


@cache
def scale_map(device: torch.device) -> Tensor:
    """float32 [256], ascending: the dynamic map of arXiv:1511.04561 with seven exponents and a sign.

    Exponent e has 2^e values of each sign, the middles of as many equal parts of [0.1, 1], times 10^(e - 6); and there
    are 0 and 1.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        middles = (10 ** (exponent - 6) * ((edges[:-1] + edges[1:]) / 2)).tolist()
        values += [*middles, *(-middle for middle in middles)]
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


def linear(
    x: Tensor, codes: Tensor, scales: Tensor, nested: Tensor, offset: Tensor, first: int = 0, stride: int = 0
) -> Tensor:
    """Rows x [T, columns] times a matrix, or the matrices one below the other: [T, rows], in x's dtype.

    The other arguments are those of `dequantize`.
    """
    return F.linear(x, dequantize(codes, scales, nested, offset, x.shape[1], x.dtype, first, stride).flatten(0, -2))


def dequantize(
    codes: Tensor,
    scales: Tensor,
    nested: Tensor,
    offset: Tensor,
    columns: int,
    dtype: torch.dtype,
    first: int = 0,
    stride: int = 0,
) -> Tensor:
    """Matrices [..., rows, columns] in `dtype`, from products taken in float32.

    Args:
        codes: uint8 [..., rows * columns / 2], two values a byte.
        scales: uint8 [..., blocks], indices into `scale_map`.
        nested: float32 [..., blocks / 256]; offset: float32 [...]. The scale of block b is
            `scale_map[scales[b]] * nested[b // 256] + offset`.
        first: as of `block_scales`.
        stride: as of `block_scales`.
    """
    values = F.embedding(codes.int(), pairs(codes.device)).flatten(-2)  # [..., rows * columns]
    steps = block_scales(scales, nested, offset, columns, first, stride)
    steps = steps[..., None].expand(*scales.shape, BLOCK).flatten(-2)
    return values.mul_(steps[..., : values.shape[-1]]).to(dtype).unflatten(-1, (-1, columns))


def block_scales(
    scales: Tensor, nested: Tensor, offset: Tensor, columns: int = 0, first: int = 0, stride: int = 0
) -> Tensor:
    """float32 [..., blocks], the scale of every block.

    Args:
        columns: of a part of a matrix.
        first: the number of the part's first block in the whole.
        stride: blocks in a row of the whole: block j of row r is number `first + r * stride + j`. Without a stride
            blocks have the numbers that they have here.
    """
    count = scales.shape[-1]
    if stride:
        block = torch.arange(count, device=scales.device)
        across = columns // BLOCK
        spread = nested[..., (first + block // across * stride + block % across) // NESTED]
    else:
        spread = nested.repeat_interleave(NESTED, dim=-1)[..., :count]
    return scale_map(scales.device)[scales.int()] * spread + offset[..., None]
