"""Experts whose weights are NF4: few rows from the codes themselves, many with what they are written out to."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import triton
from torch import Tensor

from text_backbone.kernels.device import multiprocessors
from text_backbone.kernels.moe import grouped, reference
from text_backbone.kernels.moe.configs import inference_tiles
from text_backbone.kernels.moe.sort import Groups, group
from text_backbone.kernels.moe.stored import Stored
from text_backbone.kernels.nf4 import few
from text_backbone.kernels.nf4.reference import BLOCK
from text_backbone.kernels.nf4.triton import (
    Launch,
    Weight,
    arrange,
    column_tiles,
    directly,
    few_linear,
    keeps,
    kept_launch,
    options,
    table,
    unpack,
)

_SCRATCH = 4 << 30  # bytes of matrices written out at a time
_FEW_EACH = 20  # mean rows of an expert up to which its codes are read directly; on an H200 16 are faster so, 32 slower
_ALONE = 4  # assignments up to which each is worked by itself, unsorted
UP = Launch(4, 4)
DOWN = Launch(4, 3, 160)


class Sizes(NamedTuple):
    """Of a layer."""

    experts: int
    hidden: int
    inner: int


Way = Callable[[Tensor, Weight, Weight, Tensor, Tensor, Sizes], Tensor]


def expert_mlp(x: Tensor, w13: Stored, w2: Stored, weights: Tensor, experts: Tensor) -> Tensor:
    """Same as `reference.expert_mlp`, without gradients."""
    ups, downs = _weight(w13), _weight(w2)
    count, hidden = len(downs.offset), x.shape[1]
    inner = downs.codes.numel() * 2 // (count * hidden)
    if not len(x) or hidden * inner % BLOCK:
        return reference.expert_mlp(x, w13, w2, weights, experts)
    x, weights, experts = x.contiguous(), weights.contiguous(), experts.contiguous()
    sizes = Sizes(count, hidden, inner)
    return way(x, experts, sizes)(x, ups, downs, weights, experts, sizes)


def way(x: Tensor, experts: Tensor, sizes: Sizes) -> Way:
    """How the layer is computed for these tokens and their experts."""
    rows = experts.numel()
    if not (directly(x.dtype, sizes.hidden) and directly(x.dtype, sizes.inner)) or rows > _FEW_EACH * sizes.experts:
        return written_out
    return alone if rows <= _ALONE and DOWN.warps % experts.shape[1] == 0 else by_expert


def alone(x: Tensor, w13: Weight, w2: Weight, weights: Tensor, experts: Tensor, sizes: Sizes) -> Tensor:
    """Each assignment by itself, from the codes."""
    h = x.new_empty(experts.numel(), sizes.inner)
    up(x, w13, experts, None, h, sizes.inner, 1)
    return down(h, w2, weights, experts, sizes.hidden)


def by_expert(x: Tensor, w13: Weight, w2: Weight, weights: Tensor, experts: Tensor, sizes: Sizes) -> Tensor:
    """The rows of every expert together, from the codes."""
    count, hidden, inner = sizes
    groups, columns = group(experts, count), tiles_each(experts, count)
    h, y = x.new_empty(experts.numel(), inner), x.new_empty(experts.numel(), hidden)
    up(arrange(x), w13, groups.order, groups.bounds, h, inner, columns)
    few_linear(h, [w2], [y], groups.bounds, count, True, columns)
    return grouped.combine(y, weights, groups)[0]


def tiles_each(experts: Tensor, count: int) -> int:
    """Column tiles of a program, by the mean of rows: room that stays empty costs more than a second tile."""
    return column_tiles(triton.cdiv(experts.numel(), count))


def _weight(stored: Stored) -> Weight:
    codes, scales, nested, offset = stored.at()
    return Weight(codes, scales, nested, offset, stored.first, stored.stride)


def up(
    x: Tensor,
    weight: Weight,
    experts: Tensor,
    bounds: Tensor | None,
    h: Tensor,
    inner: int,
    columns: int,
    launch: Launch | None = None,
) -> None:
    """Write SiLU(w1 x) * w3 x, arranged, of every assignment to h; see `few.up_kernel`."""
    codes, scales, nested, offset, first, stride = weight
    count, values, kept = len(offset), table(x.device, x.dtype), keeps(x) and bounds is None
    launch = launch or (kept_launch(2 * inner * (len(h) // len(x)), x.device) if kept else UP)
    few.up_kernel[(launch.programs * multiprocessors(x.device),)](
        x, codes, scales, nested, offset, values, experts, values if bounds is None else bounds, h,
        len(h), first, stride, x.shape[1], inner, nested.shape[-1], len(h) // len(x), count,
        max(2, triton.next_power_of_2(count)), columns, bounds is not None,
        kept, **options(launch, x.device),
    )  # fmt: skip


def down(h: Tensor, weight: Weight, weights: Tensor, experts: Tensor, hidden: int, launch: Launch = DOWN) -> Tensor:
    """The weighted sums [tokens, hidden] of w2 h over every token's experts; h is arranged, one row an assignment."""
    codes, scales, nested, offset, first, stride = weight
    out = h.new_empty(len(experts), hidden)
    few.down_kernel[(launch.programs * multiprocessors(h.device),)](
        h, codes, scales, nested, offset, table(h.device, h.dtype), weights, experts, out, len(experts), first, stride,
        hidden, h.shape[1], nested.shape[-1], experts.shape[1], **options(launch, h.device),
    )  # fmt: skip
    return out


def written_out(x: Tensor, w13: Weight, w2: Weight, weights: Tensor, experts: Tensor, sizes: Sizes) -> Tensor:
    """The matrices of some experts at a time are written out for the kernels of plain weights."""
    count, hidden, inner = sizes
    groups = group(experts, count)
    rows, top_k = experts.numel(), experts.shape[1]
    first, second = inference_tiles(rows, count, x.dtype, x.device)
    part = max(1, min(count, _SCRATCH // (2 * inner * hidden * x.element_size())))
    scratch = x.new_empty(part * 2 * inner * hidden)
    h, y = x.new_empty(rows, inner), x.new_empty(rows, hidden)
    for begin in range(0, count, part):
        some = w13.matrices(begin, begin + part)
        matrices = unpack(some, x.dtype, (len(some.codes), 2, inner, hidden), scratch)
        grouped.up(x, matrices, _some(groups, begin, begin + part), top_k, first, save=False, h=h)
    for begin in range(0, count, 2 * part):
        some = w2.matrices(begin, begin + 2 * part)
        matrices = unpack(some, x.dtype, (len(some.codes), hidden, inner), scratch)
        grouped.linear(h, matrices, _some(groups, begin, begin + 2 * part), second, y=y)
    return grouped.combine(y, weights, groups)[0]


def _some(groups: Groups, begin: int, end: int) -> Groups:
    """The rows of some experts alone."""
    return Groups(groups.order, groups.place, groups.bounds[begin : end + 1])
