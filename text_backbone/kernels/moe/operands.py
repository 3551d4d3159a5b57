"""How the products' kernels read weights, through the tensor memory accelerator or not, and codes with scales."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from text_backbone.kernels.moe.configs import Tile


class Scales(NamedTuple):
    """What products of codes are multiplied by: float32, one for every row of a weight, and of x where it is codes too.

    out: the dtype of what comes out, where it is not that of x.
    """

    weight: Tensor | None = None
    x: Tensor | None = None
    out: torch.dtype | None = None


UNSCALED = Scales()


@triton.jit
def scaled(total, scales, column, N: tl.constexpr, row_scales, row, live):
    """total [BM, BN] times the scales of its columns, which begin at `scales`, and of its rows, where there are any."""
    if scales is not None:
        total *= tl.load(scales + column, mask=column < N, other=0.0)[None, :]
    if row_scales is not None:
        total *= tl.load(row_scales + row, mask=live, other=0.0)[:, None]
    return total


@triton.jit
def _pairs(codes):
    """bfloat16 [N, K] from pairs of int8, int16 [N, K / 2].

    As bfloat16 0x43xx, the lower seven bits of a code are 128 more than they say, and its sign bit makes 128 or 256:
    their difference is the code.
    """
    both = tl.inline_asm_elementwise(
        """{
        .reg .b32 wide, low, sign;
        prmt.b32 wide, $1, 0x43, 0x4140;
        and.b32 low, wide, 0xff7fff7f;
        and.b32 sign, wide, 0xff80ff80;
        sub.bf16x2 $0, low, sign;
        }""",
        "=r,r", [codes.to(tl.uint16, bitcast=True).to(tl.uint32)], dtype=tl.uint32, is_pure=True, pack=1,
    )  # fmt: skip
    first = (both & 0xFFFF).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    second = (both >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return tl.reshape(tl.join(first, second), [codes.shape[0], 2 * codes.shape[1]])


@triton.jit
def converted(codes, kind: tl.constexpr):
    """Codes [N, K] in the type that they are multiplied in, exactly. int16 [N, K / 2] are pairs of int8."""
    return _pairs(codes) if codes.dtype == tl.int16 else codes.to(kind)


def reachable(weight: Tensor) -> bool:
    """Whether the tensor memory accelerator can read `weight`, contiguous: its rows begin at 16-byte boundaries."""
    return (weight.data_ptr() | weight.shape[-1] * weight.element_size()) % 16 == 0


def streamed(weight: Tensor, block: list[int]) -> TensorDescriptor:
    """`weight` [.., rows, columns] as a descriptor for the tensor memory accelerator."""
    matrices = weight.flatten(0, -3) if weight.dim() > 2 else weight
    return TensorDescriptor(matrices, list(matrices.shape), list(matrices.stride()), block)


def readable(weight: Tensor, block: list[int], x: Tensor, tile: Tile) -> tuple[Tensor | TensorDescriptor, bool, int]:
    """What a kernel reads a weight by, whether that is a descriptor of `block`, and the values in an element of it."""
    if not (tile.tma and reachable(weight)):
        return weight, False, 1
    if weight.dtype == torch.int8 and x.dtype == torch.bfloat16 and tile.swap:
        return streamed(weight.view(torch.int16), [*block[:-1], block[-1] // 2]), True, 2
    return streamed(weight, block), True, 1
