"""NF4 with double quantization (QLoRA, arXiv:2305.14314, section 3), in bitsandbytes' layout, bit for bit.

A matrix is cut, row after row, into blocks of 64 values. Each is a scale, its largest magnitude, times 64 codes of four
bits, which index 16 quantiles of a normal distribution. The scales, less their mean, are quantised in turn: in blocks
of 256, to eight bits of a map whose steps grow with the magnitude. That comes to 4.127 bits a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from text_backbone.kernels import nf4 as kernels
from text_backbone.kernels.nf4 import reference
from text_backbone.kernels.nf4.reference import BLOCK, NESTED, levels, scale_map
from text_backbone.part import Part
from text_backbone.quantization.finite import checked


class NF4(NamedTuple):
    """A quantised matrix [rows, columns], or several in leading dimensions.

    codes: uint8 [..., rows * columns / 2], two values a byte, the first in the upper four bits. scales: uint8
    [..., blocks], indices into `scale_map`. nested: float32 [..., blocks / 256], and offset: float32 [...]; the scale
    of block b is `scale_map[scales[b]] * nested[b // 256] + offset`. A part of a matrix has codes and scales of its
    own blocks alone, and `nested` and `offset` of all: b then is a block's number in the whole, see `block_scales`.
    """

    codes: Tensor
    scales: Tensor
    nested: Tensor
    offset: Tensor


def sizes(rows: int, columns: int) -> tuple[int, int, int]:
    """Bytes of codes, and numbers of scales and of nested scales, of a matrix. ValueError if its size is odd."""
    if rows * columns % 2:
        raise ValueError(f"NF4 packs two values in a byte: a matrix of {rows} x {columns} has an odd number")
    blocks = -(-rows * columns // BLOCK)
    return rows * columns // 2, blocks, -(-blocks // NESTED)


def empty(lead: tuple[int, ...], rows: int, columns: int, device: torch.device | str | None = None) -> NF4:
    """Room for matrices [*lead, rows, columns], uninitialised."""
    codes, blocks, nested = sizes(rows, columns)
    return NF4(
        torch.empty(*lead, codes, dtype=torch.uint8, device=device),
        torch.empty(*lead, blocks, dtype=torch.uint8, device=device),
        torch.empty(*lead, nested, dtype=torch.float32, device=device),
        torch.empty(lead, dtype=torch.float32, device=device),
    )


def quantize(matrix: Tensor) -> NF4:
    """One matrix [rows, columns] of any float dtype, on its device. Its temporaries take 13 bytes a value.

    Raises:
        ValueError: if a value is not finite, or the number of values is odd.
    """
    sizes(*matrix.shape)
    absmax, scaled = _normalised(checked(matrix).flatten(), BLOCK)
    bounds = levels(matrix.device)
    codes = torch.bucketize(scaled, (bounds[1:] + bounds[:-1]) / 2, out_int32=True).to(torch.uint8)
    codes = codes[: matrix.numel()]
    offset = absmax.mean()
    nested, spread = _normalised(absmax - offset, NESTED)
    steps = scale_map(matrix.device)
    # bitsandbytes looks eight-bit codes up by the nearest of 65536 points of [-1, 1], and so one in 500 is not nearest.
    spread = torch.floor((spread + 1) * 32767.5 + 0.5) / 32767.5 - 1
    spread[nested.repeat_interleave(NESTED) == 0] = -1  # what code is multiplied by 0 says nothing; its is the first
    scales = torch.bucketize(spread, (steps[1:] + steps[:-1]) / 2, out_int32=True).to(torch.uint8)
    return NF4(codes[::2] << 4 | codes[1::2], scales[: len(absmax)], nested, offset)


def _normalised(values: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Largest magnitudes [blocks], and the values over those of their blocks, flat and padded to whole blocks."""
    parts = F.pad(values, (0, -len(values) % block)).view(-1, block)
    largest = parts.abs().amax(dim=1)
    return largest, (parts * (1 / largest.clamp(min=1e-38))[:, None]).clamp(-1, 1).flatten()


def cut(name: str, whole: Tensor, part: Part) -> Tensor:
    """A view of what a part of a matrix has of the field `name` of the whole.

    Raises:
        ValueError: if the part does not consist of whole blocks of 64.
    """
    if part.is_all or name not in ("codes", "scales"):
        return whole
    blocks = part.coarser(BLOCK)  # of codes too: it refuses what would cut a block
    fields = blocks if name == "scales" else part.coarser(2)
    return fields.of(whole.view(fields.whole))


def dequantize(weight: NF4, columns: int, dtype: torch.dtype, first: int = 0, stride: int = 0) -> Tensor:
    """[..., rows, columns] in `dtype`, from products taken in float32; `first` and `stride` as of `block_scales`."""
    return reference.dequantize(*weight, columns, dtype, first, stride)


def largest(weight: NF4, columns: int, first: int = 0, stride: int = 0) -> Tensor:
    """The magnitude, in float32, that no value is above; `first` and `stride` as of `block_scales`."""
    return reference.block_scales(weight.scales, weight.nested, weight.offset, columns, first, stride).abs().max()


def linear(weight: NF4, columns: int, x: Tensor, first: int = 0, stride: int = 0) -> Tensor:
    """Rows x [T, columns] times the matrix, or the matrices one below the other: [T, rows] in x's dtype."""
    return kernels.linear(x, *weight, first, stride)


def linears(weights: Sequence[tuple[NF4, int, int]], x: Tensor) -> list[Tensor] | None:
    """Rows x times each of several matrices, with their `first` and `stride`, in one launch; None if no kernel can."""
    return kernels.linears(x, [(*weight, first, stride) for weight, first, stride in weights])


def linear_to(y: Tensor, weight: NF4, x: Tensor, first: int, stride: int) -> bool:
    """Have a kernel write `linear` of one matrix to y, whose rows may be apart; False, and nothing, if none can."""
    return kernels.linear_to(y, x, (*weight, first, stride))
