"""Packing against the released unpadding, re-derived here from image sizes, and against transformers' LLaVA-NeXT."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, unpad_image

from preprocessing.grid import PINPOINTS
from preprocessing.patcher import Patcher
from vision_encoder.packing import Grid, Plan, plan_packing

P = 24
NEWLINE = -1
PATCHER = Patcher()
sides = st.one_of(st.integers(1, 4000), st.integers(1, 40), st.sampled_from([336 * i for i in range(1, 7)]))


def packed(grids: list[Grid], patches: int = P) -> list[int]:
    """The plan written out: for every token the index of its feature, or NEWLINE."""
    plan: Plan = plan_packing(grids, patches)
    tokens = torch.full((plan.tokens,), NEWLINE)
    tokens[plan.target] = plan.source
    return cast(list[int], tokens.tolist())


def released_resolution(w: int, h: int) -> tuple[int, int]:
    """The released choice of a grid pinpoint: most effective pixels, then least waste, then first."""
    best, best_key = PINPOINTS[0], (-1, 0)
    for W, H in PINPOINTS:
        s = min(W / w, H / h)
        effective = min(max(1, int(w * s)) * max(1, int(h * s)), w * h)
        key = (effective, -(W * H - effective))
        if key > best_key:
            best, best_key = (W, H), key
    return best


def feature_map(W: int, H: int) -> np.ndarray:
    """Indices of the tile features put back on one map, after the thumbnail's: [H / 14, W / 14]."""
    tiles = [P * P + np.arange(i * P * P, (i + 1) * P * P).reshape(P, P) for i in range((W // 336) * (H // 336))]
    per_row = W // 336
    return np.vstack([np.hstack(tiles[i : i + per_row]) for i in range(0, len(tiles), per_row)])


def released_tokens(w: int, h: int) -> list[int]:
    """An image's tokens straight from its size, by the released recipe (a side is never less than 1)."""
    fmap = feature_map(*released_resolution(w, h))
    height, width = fmap.shape
    if w / h > width / height:
        new = max(1, int(h * width) // w)
        pad = (height - new) // 2
        fmap = fmap[pad : height - pad, :]
    else:
        new = max(1, int(w * height) // h)
        pad = (width - new) // 2
        fmap = fmap[:, pad : width - pad]
    tokens = list(range(P * P))
    for row in fmap:
        tokens += [*row.tolist(), NEWLINE]
    return tokens


@settings(deadline=None)
@given(sides, sides)
@example(1, 3000)
@example(3000, 1)
@example(1920, 1080)
@example(2016, 1344)
def test_equals_the_released_unpadding(w: int, h: int) -> None:
    assert packed([PATCHER.grid(w, h)]) == released_tokens(w, h)


@settings(deadline=None)
@given(sides, sides)
@example(640, 480)
@example(336, 336)
def test_equals_llava_next_where_the_recipes_agree(w: int, h: int) -> None:
    """transformers' `pack_image_features`, for the sizes where both recipes keep the same window.

    LLaVA-NeXT takes the picture's side on the map as `int(round(h * (W' / w), 7))`, the released model as
    `int(h * W') // w`. The rounding restores the whole numbers that floating point misses, and an exact quotient that
    is not whole stays at least 1 / w below the next one, so the two agree on all sizes up to millions of pixels a
    side. They differ on slivers, where the quotient is below 1: LLaVA-NeXT then keeps no row or column at all, and
    the released model would too; at least one is our guard, two after symmetric padding of an even map.
    """
    W, H = released_resolution(w, h)
    if min(h * W, w * H) < 14 * max(w, h):
        return
    features = torch.arange((1 + (W // 336) * (H // 336)) * P * P)
    tiles = features.view(-1, P * P, 1).float()
    stub: Any = SimpleNamespace(
        config=SimpleNamespace(
            vision_config=SimpleNamespace(image_size=336, patch_size=14),
            image_grid_pinpoints=[[H, W]],  # the choice itself is the patcher's and is tested there
        )
    )
    (expected,), lengths = LlavaNextModel.pack_image_features(
        stub, [tiles], torch.tensor([[h, w]]), "default", torch.full((1,), float(NEWLINE))
    )
    assert packed([PATCHER.grid(w, h)]) == expected[:, 0].long().tolist()
    assert lengths.tolist() == [PATCHER.grid(w, h).tokens]


def test_slivers_are_where_llava_next_differs() -> None:
    W, H = released_resolution(1, 3000)
    llava = unpad_image(torch.from_numpy(feature_map(W, H))[None], (3000, 1))
    assert llava.shape[-1] == 0
    assert PATCHER.grid(1, 3000).cols == 2


@settings(deadline=None)
@given(st.lists(st.tuples(sides, sides), min_size=2, max_size=4))
@example([(640, 480), (480, 640), (640, 480)])
def test_a_batch_is_its_images_one_after_the_other(sizes: list[tuple[int, int]]) -> None:
    grids = [PATCHER.grid(w, h) for w, h in sizes]
    expected: list[int] = []
    first = 0
    for (w, h), grid in zip(sizes, grids, strict=True):
        expected += [index if index == NEWLINE else first + index for index in released_tokens(w, h)]
        first += grid.tiles * P * P
    assert packed(list(grids)) == expected
    source = plan_packing(grids, P).source
    assert bool((source[1:] > source[:-1]).all())


def test_plan_of_nothing() -> None:
    plan = plan_packing([], P)
    assert (plan.source.numel(), plan.target.numel(), plan.tokens) == (0, 0, 0)


@pytest.mark.parametrize("change", [{"top": -1}, {"left": 9}, {"rows": 49}, {"cols": 0}])
def test_window_must_lie_on_the_map(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="does not fit on its 48 x 48 map"):
        plan_packing([replace(PATCHER.grid(640, 480), **change)], P)


def test_grid_of_another_tile_size_is_refused() -> None:
    other = Patcher(pinpoints=((28, 28),), tile=28, patch=14).grid(28, 28)
    with pytest.raises(ValueError, match="24 patches along a tile"):
        plan_packing([other], P)


def test_tensors_are_int64() -> None:
    plan = plan_packing([PATCHER.grid(640, 480)], P)
    tensors: list[Tensor] = [plan.source, plan.target]
    assert {tensor.dtype for tensor in tensors} == {torch.int64}
