"""Shapes in odd forms: outlines, lying, upside down or mirrored, in colours of CSS, close together and many."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

import vl
from vl.evaluation.metrics import named_shapes
from vl.nano.kinds import KINDS
from vl.nano.mix import Mix
from vl.nano.pictures.canvas import CSS_COLOURS, SizeRange, contrast
from vl.nano.pictures.counts import draw_counts
from vl.nano.pictures.placing import Disc
from vl.nano.pictures.scenes import SHAPES, SceneFacts, paint_shape

SIZES = (SizeRange(200, 336, 1.0),)
MIX = Mix(sizes=SIZES, odd=1.0)
SCENES = [KINDS["scenes"].draw(np.random.default_rng((21, i)), MIX) for i in range(80)]


def painted(shape: str, seed: int, odd: float) -> tuple[np.ndarray, float]:
    """Where a black shape of radius 60 px is inked, [160, 160] of bool, and the width of its outline."""
    image = Image.new("RGB", (160, 160), (255, 255, 255))
    drawn = paint_shape(np.random.default_rng(seed), image, Disc(80, 80, 60, 60), shape, "black", (0, 0, 0), odd)
    return np.asarray(image)[..., 0] < 128, drawn.line


@pytest.mark.parametrize("shape", SHAPES)
def test_an_outline_is_the_edge_of_the_shape_and_no_more(shape: str) -> None:
    outlined = [ink for ink, line in (painted(shape, seed, 1.0) for seed in range(12)) if line]
    filled, line = painted(shape, 1, 0.0)
    assert line == 0.0
    assert 3 <= len(outlined) <= 11
    for ink in outlined:
        assert 0 < ink.sum() < 0.75 * filled.sum()
        y, x = np.nonzero(ink)
        assert np.hypot(x - 79.5, y - 79.5).max() < 62
        if shape not in ("ring", "crescent"):
            assert filled[80, 80]
            assert not ink[80, 80], "it is not filled"


def test_shapes_lie_and_stand_where_the_name_stays_right() -> None:
    wide, high = 0, 0
    for seed in range(40):
        y, x = np.nonzero(painted("oval", seed, 1.0)[0])
        wide, high = wide + (np.ptp(x) > np.ptp(y)), high + (np.ptp(y) > np.ptp(x))
    assert min(wide, high) > 8
    for seed in range(20):
        y, x = np.nonzero(painted("oval", seed, 0.0)[0])
        assert np.ptp(x) > np.ptp(y)


def test_colours_of_css_are_drawn_and_two_names_are_never_alike() -> None:
    named = {(shape.rgb, shape.colour) for _, facts in SCENES for shape in facts.shapes}
    assert all(rgb in CSS_COLOURS[colour] for rgb, colour in named)
    assert len(named) > 20
    for (name, values), (other, others) in combinations(CSS_COLOURS.items(), 2):
        assert min(contrast(a, b) for a in values for b in others) > 75, (name, other)


def test_odd_scenes_hold_up_to_nine_shapes_and_their_captions_name_them_all() -> None:
    counts = [len(facts.shapes) for _, facts in SCENES]
    assert max(counts) == 9
    assert sum(count > 6 for count in counts) > 8
    for _, facts in SCENES:
        assert isinstance(facts, SceneFacts)
        caption = KINDS["scenes"].caption(facts)
        assert named_shapes(caption) == [(s.colour, s.shape, s.position) for s in facts.shapes]
        order = [(int(3 * s.y / facts.height), int(3 * s.x / facts.width)) for s in facts.shapes]
        assert order == sorted(order)


def test_close_shapes_touch_or_overlap_but_none_hides_another() -> None:
    touching = 0
    for seed in range(80):
        _, facts = draw_counts(np.random.default_rng(seed), SIZES, odd=1.0)
        for a, b in combinations(facts.shapes, 2):
            apart = np.hypot(a.x - b.x, a.y - b.y)
            assert apart > 0.6 * max(a.radius, b.radius)
            touching += apart < a.radius + b.radius
    assert touching > 30


def test_a_share_is_from_0_to_1() -> None:
    with pytest.raises(vl.ConfigError, match="odd"):
        Mix(odd=1.2)
