"""Candidates for the tables of int8 and FP8: experts in `moe.configs`, projections in `row_scaled.configs`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from text_backbone.kernels.moe import decode, grouped
from text_backbone.kernels.moe.configs import GEMV_DOWN_8, GEMV_UP_8, Gemv, Tile, inference_tiles
from text_backbone.kernels.moe.operands import Scales
from text_backbone.kernels.row_scaled import dense
from text_backbone.kernels.row_scaled.configs import VECTOR, Vector, dense_tile
from vl.bench.tune.moe import EXPERTS, HIDDEN, INNER, TOP_K, routed
from vl.bench.tune.sweeps import Sweep

INT8, FP8 = torch.int8, torch.float8_e4m3fn
QKV, OUT = (24576, 6144), (6144, 8192)  # lightning's projections

MANY = {
    INT8: (
        Tile(256, 128, 64, 8, 3, swap=True, tma=True),
        Tile(256, 128, 64, 8, 4, swap=True, tma=True),
        Tile(256, 128, 64, 8, 4, group=8, swap=True, tma=True),
        Tile(256, 128, 64, 8, 4, swap=True, tma=True, short=True),
        Tile(256, 128, 128, 8, 2, swap=True, tma=True),
        Tile(128, 128, 64, 4, 4, swap=True, tma=True),
        Tile(128, 256, 64, 8, 4, swap=True, tma=True),
        Tile(128, 256, 64, 8, 3, tma=True, short=True),
    ),
    FP8: (
        *(Tile(128, 256, 128, 8, stages, tma=True, short=True) for stages in (3, 4)),
        Tile(128, 256, 128, 8, 4, group=8, tma=True, short=True),
        Tile(128, 256, 64, 8, 6, tma=True, short=True),
        Tile(128, 128, 128, 4, 3, tma=True),
        Tile(256, 128, 128, 8, 4, tma=True),
        Tile(128, 256, 128, 8, 4),
    ),
}
SOME = {
    INT8: (
        Tile(64, 128, 128, 4, 3),
        Tile(64, 128, 64, 4, 4),
        Tile(64, 64, 128, 4, 4, swap=True, tma=True),
        Tile(64, 64, 256, 4, 3, swap=True, tma=True),
        Tile(64, 128, 64, 4, 5, swap=True, tma=True),
        Tile(64, 128, 128, 4, 3, swap=True, tma=True),
        Tile(64, 128, 128, 8, 3, swap=True, tma=True),
        Tile(32, 64, 256, 4, 4, swap=True, tma=True),
        Tile(32, 128, 128, 4, 4, swap=True, tma=True),
    ),
    FP8: (
        Tile(64, 128, 128, 4, 5, swap=True),
        Tile(64, 128, 128, 4, 4, swap=True, tma=True),
        Tile(32, 128, 128, 4, 5, swap=True),
        Tile(32, 64, 128, 4, 6, swap=True),
    ),
}
FEW = {
    INT8: (
        Tile(16, 64, 256, 4, 4),
        Tile(16, 128, 128, 4, 3),
        Tile(16, 128, 128, 4, 4),
        Tile(16, 128, 256, 4, 3),
        Tile(16, 64, 128, 4, 6, swap=True, tma=True),
        Tile(16, 64, 256, 4, 3, swap=True, tma=True),
        Tile(16, 64, 256, 4, 4, swap=True, tma=True),
        Tile(16, 128, 128, 4, 4, swap=True, tma=True),
        Tile(16, 128, 256, 4, 3, swap=True, tma=True),
    ),
    FP8: (
        Tile(16, 64, 256, 4, 5, swap=True),
        Tile(16, 64, 256, 4, 4, swap=True, tma=True),
        Tile(16, 64, 128, 4, 6, swap=True),
        Tile(16, 128, 256, 4, 4, swap=True),
    ),
}
# n, k, warps, stages of one token's block
ONE = (
    (1, 1024, 4, None), (1, 2048, 4, None), (2, 1024, 4, None), (4, 512, 4, None), (4, 1024, 8, None),
    (1, 1024, 4, 4), (1, 1024, 2, 4), (2, 1024, 4, 3), (2, 1024, 4, 5), (4, 512, 4, 4), (4, 1024, 4, 3), (8, 512, 4, 4),
)  # fmt: skip


def sweeps(device: torch.device) -> Iterator[Sweep]:
    for codes, name in ((INT8, "int8"), (FP8, "FP8")):
        make = partial(_made, device)
        w13, w2 = make(EXPERTS, 2, INNER, HIDDEN, dtype=codes), make(EXPERTS, HIDDEN, INNER, dtype=codes)
        scales = make(EXPERTS, 2, INNER, dtype=torch.float32), make(EXPERTS, HIDDEN, dtype=torch.float32)
        yield from _experts(make, name, w13, w2, scales)
        del w13, w2
        yield from _projections(make, name, codes)


def _made(device: torch.device, *shape: int, dtype: torch.dtype) -> Tensor:
    """Random numbers or codes, or on the meta device only their shape."""
    if dtype == INT8:
        return torch.randint(-127, 128, shape, device=device, dtype=dtype)
    x = torch.empty(*shape, device=device, dtype=torch.bfloat16 if dtype == FP8 else dtype)
    return (x if x.is_meta else x.normal_()).to(dtype)


def _rows(make: Any, count: int, width: int, weight: Tensor, scales: Tensor) -> tuple[Tensor, Scales]:
    """Rows that are multiplied by a weight of codes."""
    if weight.dtype == INT8:
        return make(count, width, dtype=torch.bfloat16), Scales(scales)
    return make(count, width, dtype=FP8), Scales(scales, make(count, dtype=torch.float32), torch.bfloat16)


def _here(device: torch.device) -> torch.device:
    """The device whose tables hold, when compiling too."""
    return torch.device("cuda") if torch.cuda.is_available() else device


def _experts(make: Any, name: str, w13: Tensor, w2: Tensor, scales: tuple[Tensor, Tensor]) -> Iterator[Sweep]:
    codes = w13.dtype
    for tokens, table in ((16384, MANY), (512, SOME), (64, FEW), (8, FEW)):
        count = tokens * TOP_K
        _, _, groups = routed(make(tokens, HIDDEN, dtype=torch.bfloat16), EXPERTS)
        x, of_x = _rows(make, tokens, HIDDEN, w13, scales[0])
        h, of_h = _rows(make, count, INNER, w2, scales[1])
        now = inference_tiles(count, EXPERTS, torch.bfloat16, _here(w13.device), codes)
        up = partial(_up, x, w13, groups, of_x)
        yield Sweep(f"{name} experts up, {tokens} tokens", table[codes], up, now[0], tokens <= 64)
        down = partial(_down, h, w2, groups, of_h)
        yield Sweep(f"{name} experts down, {tokens} tokens", table[codes], down, now[1], tokens <= 64)
    weights, chosen, _ = routed(make(1, HIDDEN, dtype=torch.bfloat16), EXPERTS)
    x, of_x = _rows(make, 1, HIDDEN, w13, scales[0])
    h, of_h = _rows(make, TOP_K, INNER, w2, scales[1])
    vectors = tuple(Gemv(n, k, warps, GEMV_UP_8.most, stages) for n, k, warps, stages in ONE)
    yield Sweep(f"{name} experts up, 1 token", vectors, lambda t: decode.up(x, w13, chosen, t, of_x), GEMV_UP_8, True)
    down = partial(_down_one, h, w2, weights, chosen, of_h)
    yield Sweep(f"{name} experts down, 1 token", vectors, down, GEMV_DOWN_8, True)


def _projections(make: Any, name: str, codes: torch.dtype) -> Iterator[Sweep]:
    for rows, columns, most in ((*QKV, 8192), (*OUT, 64)):
        weight, scales = make(rows, columns, dtype=codes), make(rows, dtype=torch.float32)
        for tokens, table in ((8192, MANY), (512, SOME), (64, SOME), (8, FEW)):
            if tokens > most:
                continue
            x, of_x = _rows(make, tokens, columns, weight, scales)
            now = dense_tile(tokens, rows, torch.bfloat16, codes, _here(weight.device))
            run = partial(_matrix, x, weight, of_x)
            yield Sweep(f"{name} projection {rows} x {columns}, {tokens} tokens", table[codes], run, now, tokens <= 64)
        x, of_x = _rows(make, 1, columns, weight, scales)
        vectors = tuple(Vector(n, k, warps, VECTOR.most, stages) for n, k, warps, stages in ONE)
        run = partial(_vector, x, weight, of_x)
        yield Sweep(f"{name} projection {rows} x {columns}, 1 token", vectors, run, VECTOR, True)


def _up(x: Tensor, w13: Tensor, groups: Any, scales: Scales, tile: Tile) -> object:
    return grouped.up(x, w13, groups, TOP_K, tile, False, scales)


def _down(h: Tensor, w2: Tensor, groups: Any, scales: Scales, tile: Tile) -> object:
    return grouped.linear(h, w2, groups, tile, scales=scales)


def _down_one(h: Tensor, w2: Tensor, weights: Tensor, chosen: Tensor, scales: Scales, tile: Gemv) -> object:
    return decode.down(h, w2, weights, chosen, tile, scales)


def _matrix(x: Tensor, weight: Tensor, scales: Scales, tile: Tile) -> object:
    return dense.matrix(x, weight, scales, tile)


def _vector(x: Tensor, weight: Tensor, scales: Scales, tile: Vector) -> object:
    return dense.vector(x, weight, scales, tile)
