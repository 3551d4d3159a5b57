"""Products with NF4 matrices in Triton: few rows read the codes themselves, many read what they are written out to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from text_backbone.kernels.device import multiprocessors
from text_backbone.kernels.nf4 import few
from text_backbone.kernels.nf4.reference import BLOCK, levels, pairs, scale_map
from text_backbone.kernels.nf4.unpack import unpack_kernel
from text_backbone.kernels.overlap import early

_PAIR = 512  # columns that a warp of the few-row kernels takes at a time
_FEW_ROWS = 32  # of a dense product, up to which its codes are read directly


class Weight(NamedTuple):
    """One matrix or several: the tensors of `reference.dequantize`, and where a part lies in the whole."""

    codes: Tensor
    scales: Tensor
    nested: Tensor
    offset: Tensor
    first: int
    stride: int

    def matrices(self, begin: int, end: int) -> Weight:
        """Those from `begin` to `end` of the first dimension."""
        codes, scales, nested, offset, first, stride = self
        cut = slice(begin, end)
        return Weight(codes[cut], scales[cut], nested[cut], offset[cut], first, stride)


class Launch(NamedTuple):
    """Warps of a program, programs of a multiprocessor, and the most registers of a thread that let so many fit."""

    warps: int
    programs: int
    registers: int | None = None


LINEAR = Launch(4, 4)
KEPT = Launch(4, 3, 160), Launch(4, 4, 128)  # of programs that keep a token, see `kept_launch`
_ROUND = 4, 5  # how long each of them takes for one tile a program, on an H200


def reads(columns: int) -> bool:
    """Whether matrices of so many columns are whole blocks in every row."""
    return columns % BLOCK == 0


def linear(
    x: Tensor, codes: Tensor, scales: Tensor, nested: Tensor, offset: Tensor, first: int = 0, stride: int = 0
) -> Tensor:
    """Same as `reference.linear`, of one matrix, without gradients."""
    x = x.contiguous()
    (rows, k), n = x.shape, codes.numel() * 2 // x.shape[1]
    weight = Weight(codes, scales, nested, offset, first, stride or k // BLOCK)
    if not rows:
        return x.new_empty(0, n)
    return way(x)(x, weight, n)


def linears(x: Tensor, weights: Sequence[Weight]) -> list[Tensor] | None:
    """Same as `linear` of each; None if their codes are not read directly, or they are parts of unequal wholes."""
    if not _few(x) or len({weight.stride for weight in weights}) > 1:
        return None
    return several(x.contiguous(), weights, [weight.codes.numel() * 2 // x.shape[1] for weight in weights])


def linear_to(y: Tensor, x: Tensor, weight: Weight) -> bool:
    """Write what `linear` gives to y, whose rows may be apart; False, and nothing, if codes are not read directly."""
    if not _few(x) or y.dtype != x.dtype or y.stride(1) != 1:
        return False
    write(x.contiguous(), [weight], [y])
    return True


def _few(x: Tensor) -> bool:
    return 0 < len(x) <= _FEW_ROWS and directly(x.dtype, x.shape[1])


def way(x: Tensor) -> Callable[[Tensor, Weight, int], Tensor]:
    """How rows x are multiplied."""
    return direct if directly(x.dtype, x.shape[1]) and len(x) <= _FEW_ROWS else written_out


def direct(x: Tensor, weight: Weight, n: int, tiles: int | None = None, launch: Launch | None = None) -> Tensor:
    """Rows x [T, K] times one matrix [n, K] whose codes are read; tiles: see `column_tiles`."""
    return several(x, [weight], [n], tiles, launch)[0]


def several(
    x: Tensor, weights: Sequence[Weight], units: Sequence[int], tiles: int | None = None, launch: Launch | None = None
) -> list[Tensor]:
    """The same with several matrices, of which each has so many units, in one launch."""
    ys = [x.new_empty(len(x), n) for n in units]
    write(x, weights, ys, tiles, launch)
    return ys


def write(
    x: Tensor, weights: Sequence[Weight], ys: Sequence[Tensor], tiles: int | None = None, launch: Launch | None = None
) -> None:
    """The same to ys [T, n], whose rows may be apart."""
    wide = len(x) > 2
    few_linear(arrange(x) if wide else x, weights, ys, None, 1, wide, tiles or column_tiles(len(x)), launch)


def written_out(x: Tensor, weight: Weight, n: int) -> Tensor:
    """The same with a matrix that is written out first."""
    return F.linear(x, unpack(weight, x.dtype, (n, x.shape[1])))


def unpack(weight: Weight, dtype: torch.dtype, shape: tuple[int, ...], scratch: Tensor | None = None) -> Tensor:
    """Matrices of `shape` [..., rows, columns] in `dtype`, to the bit as `reference.dequantize` does; in `scratch`.

    Each is of whole blocks; those of one that is no part may run from one row into the next.
    """
    codes, scales, nested, offset, first, stride = weight
    size = prod(shape)
    out = torch.empty(size, dtype=dtype, device=codes.device) if scratch is None else scratch[:size]
    blocks = scales.shape[-1]
    across = shape[-1] // BLOCK if reads(shape[-1]) else blocks
    unpack_kernel[triton.cdiv(blocks, 64), max(1, offset.numel())](
        codes, scales, nested, offset, levels(codes.device), scale_map(codes.device), out, blocks, nested.shape[-1],
        first, stride, across, 64, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return out.view(shape)


def arrange(x: Tensor) -> Tensor:
    """Rows in the order in which the few-row kernels load them fastest."""
    out = torch.empty_like(x)
    few.arrange_kernel[(triton.cdiv(x.numel(), 2048),)](x, out, x.numel(), x.shape[1], 2048, **early(x.device))
    return out


def directly(dtype: torch.dtype, columns: int) -> bool:
    return dtype != torch.float32 and columns % _PAIR == 0


def keeps(x: Tensor) -> bool:
    """Whether programs keep all of x in shared memory."""
    return len(x) == 1 and x.shape[1] <= 6144


def kept_launch(units: int, device: torch.device) -> Launch:
    """Of programs that keep a token, for a matrix of so many rows: more of them at once where that saves a round."""
    tiles, places = triton.cdiv(units, 16), multiprocessors(device)
    times = [cost * triton.cdiv(tiles, launch.programs * places) for launch, cost in zip(KEPT, _ROUND, strict=True)]
    return KEPT[times.index(min(times))]


def column_tiles(rows: int) -> int:
    """Column tiles of four rows that a program multiplies a tile of the matrix by."""
    return 1 if rows <= 4 else 2 if rows <= 8 else 4


@cache
def table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """int32 [256]: the two values of every byte, the first in the lower bits."""
    return pairs(device).to(dtype).view(torch.int32).flatten()


def options(launch: Launch, device: torch.device) -> dict[str, Any]:
    return {"WARPS": launch.warps, "num_warps": launch.warps, "maxnreg": launch.registers, **early(device)}


def few_linear(
    x: Tensor,
    weights: Sequence[Weight],
    ys: Sequence[Tensor],
    bounds: Tensor | None,
    count: int,
    arranged: bool,
    columns: int,
    launch: Launch | None = None,
) -> None:
    """Write the products of rows x with each of `weights` to its y; by `bounds` those of `count` experts with theirs.

    Of matrices that are parts, all are of wholes that are as wide as each other.
    """
    values, first = table(x.device, x.dtype), weights[0]
    assert all(weight.stride == first.stride for weight in weights)
    kept = keeps(x) and bounds is None
    launch = launch or (kept_launch(sum(y.shape[1] for y in ys), x.device) if kept else LINEAR)
    codes, scales, nested, offset, firsts, _ = zip(*weights, strict=True)
    few.linear_kernel[(launch.programs * multiprocessors(x.device),)](
        x, codes, scales, nested, offset, values, values if bounds is None else bounds,
        tuple(ys), tuple(y.stride(0) for y in ys), len(x), firsts, first.stride,
        x.shape[1], tuple(y.shape[1] for y in ys), tuple(n.shape[-1] for n in nested),
        count, max(2, triton.next_power_of_2(count)), columns, bounds is not None, arranged, kept,
        **options(launch, x.device),
    )  # fmt: skip
