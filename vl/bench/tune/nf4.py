"""Candidates for NF4: launches and column tiles of the few-row kernels, and between which numbers of rows they win.

Launches are `LINEAR` and `KEPT` of `kernels.nf4.triton`, `UP` and `DOWN` of `kernels.moe.nf4`, column tiles those of
the functions `column_tiles` and `tiles_each` there. "Ways" compares the ways of a product around the thresholds
`_FEW_ROWS`, `_ALONE` and `_FEW_EACH`, whose choice is `now`. Tokens are not arranged: that changes their values' order,
and no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from text_backbone.kernels.moe import nf4 as experts
from text_backbone.kernels.moe.sort import Groups
from text_backbone.kernels.nf4 import triton as dense
from text_backbone.kernels.nf4.triton import KEPT, LINEAR, Launch, Weight, column_tiles, few_linear
from vl.bench.formats import random_weight
from vl.bench.tune.moe import EXPERTS, HIDDEN, INNER, TOP_K, routed
from vl.bench.tune.sweeps import Sweep

ROWS = 24576  # of lightning's qkv_proj
LAUNCHES = (
    Launch(4, 4), Launch(4, 3), Launch(4, 5), Launch(4, 6, 80), Launch(4, 5, 96), Launch(4, 4, 128), Launch(4, 3, 160),
    Launch(4, 2, 255), Launch(8, 2), Launch(8, 3, 80), Launch(8, 2, 128), Launch(2, 6), Launch(16, 1),
)  # fmt: skip


class Few(NamedTuple):
    """An entry: column tiles of four rows of a program, and its launch."""

    tiles: int
    launch: Launch


def sweeps(device: torch.device) -> Iterator[Sweep]:
    rows = partial(torch.randn, device=device, dtype=torch.bfloat16)
    matrix = _weight(device, (), ROWS, HIDDEN)
    for tokens, tiles in ((1, (1,)), (8, (1, 2, 4)), (32, (2, 4, 8))):
        x = rows(tokens, HIDDEN)
        run = partial(_direct, x, matrix)
        launch = KEPT[1] if tokens == 1 else LINEAR
        yield Sweep(f"LINEAR, {tokens} rows", _entries(tiles), run, Few(column_tiles(tokens), launch), True)
    for tokens in (16, 32, 64):
        x = rows(tokens, HIDDEN)
        run, now = partial(_product, x, matrix), dense.way(x).__name__
        yield Sweep(f"ways of a projection, {tokens} rows", ("direct", "written_out"), run, now, True)
    w13, w2 = _weight(device, (EXPERTS, 2), INNER, HIDDEN), _weight(device, (EXPERTS,), HIDDEN, INNER)
    yield from _alone(rows, w13, w2)
    for tokens in (8, 64, 256):
        yield from _by_expert(rows, w13, w2, tokens)
    for tokens in (2, 4, 8, 128, 256, 384, 512, 768):
        x = rows(tokens, HIDDEN)
        weights, chosen, _ = routed(x, EXPERTS)
        sizes = experts.Sizes(EXPERTS, HIDDEN, INNER)
        ways = ("by_expert", "alone" if tokens < 64 else "written_out")
        run = partial(_layer, (x, w13, w2, weights, chosen, sizes))
        yield Sweep(f"ways of a layer, {tokens} tokens", ways, run, experts.way(x, chosen, sizes).__name__, tokens < 64)


def _entries(tiles: tuple[int, ...]) -> tuple[Few, ...]:
    return tuple(Few(count, launch) for count in tiles for launch in LAUNCHES)


def _weight(device: torch.device, lead: tuple[int, ...], rows: int, columns: int) -> Weight:
    stored = random_weight("nf4", lead, rows, columns, device, torch.bfloat16)
    codes, scales, nested, offset = stored.at()
    return Weight(codes, scales, nested, offset, stored.first, stored.stride)


def _alone(rows: Any, w13: Weight, w2: Weight) -> Iterator[Sweep]:
    """One token, whose assignments are worked one by one."""
    x, h = rows(1, HIDDEN), rows(TOP_K, INNER)
    weights, chosen, _ = routed(x, EXPERTS)
    yield Sweep("UP, 1 token", LAUNCHES, partial(_up, x, w13, chosen, None, TOP_K, 1), KEPT[0], True)
    fit = tuple(launch for launch in LAUNCHES if launch.warps % TOP_K == 0)
    yield Sweep("DOWN, 1 token", fit, partial(_down, h, w2, weights, chosen), experts.DOWN, True)


def _by_expert(rows: Any, w13: Weight, w2: Weight, tokens: int) -> Iterator[Sweep]:
    x, h = rows(tokens, HIDDEN), rows(tokens * TOP_K, INNER)
    _, chosen, groups = routed(x, EXPERTS)
    now = experts.tiles_each(chosen, EXPERTS)
    tiles = tuple(sorted({now, 1 if tokens < 64 else 2, 2 if tokens < 64 else 4}))
    up = partial(_up_tiles, x, w13, groups, tokens * TOP_K)
    yield Sweep(f"UP, {tokens} tokens", _entries(tiles), up, Few(now, experts.UP), True)
    down = partial(_down_tiles, h, w2, groups)
    yield Sweep(f"down by LINEAR, {tokens} tokens", _entries(tiles), down, Few(now, LINEAR), True)


def _direct(x: Tensor, weight: Weight, entry: Few) -> object:
    return dense.direct(x, weight, ROWS, *entry)


def _product(x: Tensor, weight: Weight, way: str) -> object:
    return getattr(dense, way)(x, weight, ROWS)


def _layer(inputs: tuple[Any, ...], way: str) -> object:
    return getattr(experts, way)(*inputs)


def _up(
    x: Tensor, w13: Weight, chosen: Tensor, bounds: Tensor | None, count: int, tiles: int, launch: Launch
) -> object:
    h = x.new_empty(count, INNER)
    experts.up(x, w13, chosen, bounds, h, INNER, tiles, launch)
    return h


def _up_tiles(x: Tensor, w13: Weight, groups: Groups, count: int, entry: Few) -> object:
    return _up(x, w13, groups.order, groups.bounds, count, *entry)


def _down(h: Tensor, w2: Weight, weights: Tensor, chosen: Tensor, launch: Launch) -> object:
    return experts.down(h, w2, weights, chosen, HIDDEN, launch)


def _down_tiles(h: Tensor, w2: Weight, groups: Groups, entry: Few) -> object:
    y = h.new_empty(len(h), HIDDEN)
    few_linear(h, [w2], [y], groups.bounds, EXPERTS, True, *entry)
    return y
