"""Candidates for the tables of `text_backbone.kernels.moe.configs`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from text_backbone.kernels.moe import backward, decode, grouped, router, sort
from text_backbone.kernels.moe.configs import (
    GEMV_DOWN,
    GEMV_UP,
    TRAINING,
    TRAINING_WIDE,
    Gemv,
    Tile,
    inference_tiles,
)
from vl.bench.tune.sweeps import Sweep

EXPERTS, TOP_K = 32, 2
HIDDEN, INNER = 6144, 9216
NANO = (4, 256, 160, 131072)  # experts, hidden, inner, tokens of a training step

LARGE = (
    *(Tile(128, 256, 64, 8, stages, tma=True, short=True) for stages in (3, 4)),
    Tile(128, 256, 64, 8, 4, group=8, tma=True, short=True),
    Tile(128, 256, 64, 8, 4, tma=True),
    Tile(128, 256, 64, 8, 4, short=True),
    Tile(128, 128, 64, 8, 3, tma=True),
    Tile(64, 256, 64, 8, 4, tma=True),
)
MIDDLE = (
    Tile(64, 128, 64, 4, 4, swap=True),
    Tile(64, 128, 64, 4, 6, swap=True),
    Tile(64, 128, 64, 8, 5, swap=True),
    Tile(64, 128, 128, 4, 3, swap=True),
    Tile(64, 128, 64, 4, 4, tma=True),
    Tile(64, 256, 64, 8, 4, tma=True),
    Tile(32, 128, 64, 4, 5, swap=True),
    Tile(32, 64, 128, 4, 4, swap=True),
)
FEW = (
    Tile(16, 64, 128, 4, 3, swap=True),
    Tile(16, 64, 128, 4, 5, swap=True),
    Tile(16, 64, 64, 4, 6, swap=True),
    Tile(16, 128, 64, 4, 5, swap=True),
    Tile(16, 128, 128, 4, 3, swap=True),
    Tile(16, 128, 128, 8, 4, swap=True),
    Tile(16, 64, 256, 4, 3, swap=True),
    Tile(16, 64, 128, 4, 4, swap=True, tma=True),
    Tile(16, 128, 128, 4, 4, swap=True, tma=True),
)
VECTOR = tuple(
    Gemv(n, k, warps, GEMV_UP.most)
    for n, k, warps in (
        (1, 1024, 4), (1, 1024, 8), (1, 2048, 4), (1, 2048, 8), (2, 1024, 8), (4, 512, 4), (4, 1024, 8), (8, 512, 4),
        (8, 512, 8), (8, 1024, 8),
    )
)  # fmt: skip
TRAINED = {
    "up": (Tile(128, 128, 64, 4, 3), Tile(64, 128, 64, 4, 3), Tile(64, 128, 64, 8, 3), Tile(128, 64, 64, 4, 3)),
    "down": (Tile(128, 128, 32, 4, 4), Tile(64, 256, 32, 4, 4), Tile(128, 256, 32, 8, 3), Tile(64, 128, 32, 4, 4)),
    "dh": (
        Tile(64, 64, 64, 8, 3),
        Tile(64, 64, 64, 4, 3),
        Tile(64, 32, 64, 4, 3, registers=128),
        Tile(128, 32, 64, 8, 3, registers=128),
    ),
    "dx": (Tile(128, 128, 64, 4, 3), Tile(128, 256, 64, 8, 2), Tile(64, 128, 64, 4, 3)),
    "dw": (Tile(128, 128, 64, 4, 4), Tile(64, 128, 64, 4, 4), Tile(128, 128, 32, 8, 5), Tile(64, 256, 64, 8, 4)),
}
TRAINED_WIDE = {
    "up": LARGE,
    "down": LARGE,
    "dh": (
        Tile(128, 256, 64, 8, 3, tma=True),
        Tile(128, 256, 64, 8, 4, group=8, tma=True),
        Tile(128, 128, 64, 8, 4, tma=True),
        Tile(128, 128, 64, 4, 3, tma=True),
        Tile(128, 128, 64, 8, 3, tma=True, registers=128),
        Tile(256, 128, 64, 8, 4, tma=True),
    ),
    "dx": (
        Tile(128, 256, 64, 8, 3, tma=True),
        Tile(128, 256, 64, 8, 4, group=8, tma=True),
        Tile(128, 128, 64, 4, 3, tma=True),
        Tile(256, 128, 64, 8, 4, tma=True),
    ),
    "dw": (
        Tile(128, 256, 64, 8, 3, tma=True),
        Tile(256, 128, 64, 8, 3, tma=True),
        Tile(256, 128, 64, 8, 4, tma=True),
        Tile(128, 128, 64, 4, 3, tma=True),
        Tile(128, 128, 64, 8, 3, tma=True),
        Tile(128, 128, 128, 8, 3, tma=True),
        Tile(128, 256, 64, 8, 4),
    ),
}

Make = Callable[..., Tensor]


def sweeps(device: torch.device) -> Iterator[Sweep]:
    yield from _inference(device)
    yield from _training(device)


def _maker(device: torch.device) -> Make:
    """Random numbers, or on the meta device only their shape."""

    def make(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        x = torch.empty(*shape, device=device, dtype=dtype)
        return x if x.is_meta else x.normal_(std=0.02)

    return make


def routed(x: Tensor, experts: int) -> tuple[Tensor, Tensor, sort.Groups]:
    """Weights and experts [T, k] of tokens x that spread evenly, and their sorted assignments; shapes only on meta."""
    count = len(x) * TOP_K
    if x.is_meta:
        order, place, bounds = (x.new_empty(n, dtype=torch.int32) for n in (count, count, experts + 1))
        chosen = x.new_empty(len(x), TOP_K, dtype=torch.int64)
        return x.new_empty(len(x), TOP_K, dtype=torch.float32), chosen, sort.Groups(order, place, bounds)
    weights, chosen, _ = router.route_forward(x, x.new_empty(experts, x.shape[1]).normal_(std=0.02), TOP_K)
    return weights, chosen, sort.group(chosen, experts)


def _inference(device: torch.device) -> Iterator[Sweep]:
    make = _maker(device)
    gpu = torch.device("cuda") if torch.cuda.is_available() else device  # whose table holds, when compiling too
    w13, w2 = make(EXPERTS, 2, INNER, HIDDEN), make(EXPERTS, HIDDEN, INNER)
    for tokens, tiles in ((16384, LARGE), (4096, LARGE), (512, MIDDLE), (64, FEW + MIDDLE[-2:]), (8, FEW)):
        x = make(tokens, HIDDEN)
        h = make(tokens * TOP_K, INNER)
        _, _, groups = routed(x, EXPERTS)
        up, down = inference_tiles(tokens * TOP_K, EXPERTS, x.dtype, gpu)
        rows, graph = f"{tokens * TOP_K / EXPERTS:g} rows an expert", tokens <= 64
        yield Sweep(f"INFERENCE up, {rows}", tiles, partial(_up, x, w13, groups), up, graph)
        yield Sweep(f"INFERENCE down, {rows}", tiles, partial(grouped.linear, h, w2, groups), down, graph)
    x, h = make(1, HIDDEN), make(TOP_K, INNER)
    weights, chosen, _ = routed(x, EXPERTS)
    yield Sweep("GEMV up, 1 token", VECTOR, partial(decode.up, x, w13, chosen), GEMV_UP, True)
    yield Sweep("GEMV down, 1 token", VECTOR, partial(decode.down, h, w2, weights, chosen), GEMV_DOWN, True)


def _up(x: Tensor, w13: Tensor, groups: sort.Groups, tile: Tile, save: bool = False) -> object:
    return grouped.up(x, w13, groups, TOP_K, tile, save)


def _training(device: torch.device) -> Iterator[Sweep]:
    make = _maker(device)
    for name, table, candidates, (experts, hidden, inner, tokens) in (
        ("nano", TRAINING, TRAINED, NANO),
        ("16384 tokens", TRAINING_WIDE, TRAINED_WIDE, (EXPERTS, HIDDEN, INNER, 16384)),
    ):
        w13, w2 = make(experts, 2, inner, hidden), make(experts, hidden, inner)
        x, dout = make(tokens, hidden), make(tokens, hidden)
        weights, _, groups = routed(x, experts)
        count = tokens * TOP_K
        h, ab, dab = make(count, inner), make(count, 2, inner), make(count, 2, inner)
        runs: dict[str, Callable[[Any], object]] = {
            "up": partial(_up, x, w13, groups, save=True),
            "down": partial(grouped.linear, h, w2, groups),
            "dh": partial(backward.dh, dout, w2, ab, weights, groups),
            "dx": partial(grouped.linear, dab.flatten(1), w13, groups, transposed=True),
            "dw": partial(backward.weight_gradients, x, dout, dab, h, groups, TOP_K),
        }
        for op, run in runs.items():
            yield Sweep(f"TRAINING {op}, {name}", candidates[op], run, table[op])
