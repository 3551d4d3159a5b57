from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from vl.nano.pictures.canvas import Box
from vl.nano.pictures.damage import damage, turn


def marked(width: int, height: int, box: Box) -> Image.Image:
    """White with one black rectangle."""
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="black")
    return image


def ink(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L")) < 128


@settings(deadline=None, max_examples=40)
@given(
    width=st.integers(64, 400),
    height=st.integers(64, 400),
    degrees=st.floats(-2.5, 2.5),
    x=st.floats(0, 1),
    y=st.floats(0, 1),
)
def test_a_box_goes_where_its_ink_goes(width: int, height: int, degrees: float, x: float, y: float) -> None:
    left, top = 1 + int(x * (width - 14)), 1 + int(y * (height - 14))
    box = (float(left), float(top), float(left + 12), float(top + 12))
    image, ((name, moved),) = turn(marked(width, height, box), (("a", box),), degrees)
    assert image.size == (width, height)
    rows, cols = np.nonzero(ink(image))
    assert name == "a"
    assert cols.mean() + 0.5 == pytest.approx((moved[0] + moved[2]) / 2, abs=0.6)
    assert rows.mean() + 0.5 == pytest.approx((moved[1] + moved[3]) / 2, abs=0.6)
    # Whole, though it may have been in a corner, and reduced as its box says.
    assert ink(image).sum() == pytest.approx((moved[2] - moved[0]) * (moved[3] - moved[1]), rel=0.15)


def test_turns_are_clockwise() -> None:
    box = (10.0, 95.0, 30.0, 105.0)
    _, ((_, moved),) = turn(marked(200, 200, box), (("a", box),), 2.5)
    assert moved[1] < box[1], "what is on the left goes up"


def test_damage_is_seen_but_not_ruinous() -> None:
    box = (60.0, 60.0, 140.0, 140.0)
    changed = []
    for seed in range(60):
        image, boxes = damage(np.random.default_rng(seed), marked(200, 200, box), (("a", box),))
        again, _ = damage(np.random.default_rng(seed), marked(200, 200, box), (("a", box),))
        assert image.tobytes() == again.tobytes()
        assert image.size == (200, 200)
        assert image.mode == "RGB"
        (_, (left, top, right, bottom)) = boxes[0]
        inside = np.asarray(image.convert("L"), float)[
            round(top) + 8 : round(bottom) - 8, round(left) + 8 : round(right) - 8
        ]
        outside = np.asarray(image.convert("L"), float)[:40, :40]
        assert outside.mean() - inside.mean() > 200
        changed.append(image.tobytes() != marked(200, 200, box).tobytes())
    assert np.mean(changed) > 0.9


def test_the_picture_given_is_left_alone() -> None:
    image = marked(100, 100, (20.0, 20.0, 60.0, 60.0))
    before = image.tobytes()
    for seed in range(10):
        damage(np.random.default_rng(seed), image, ())
    assert image.tobytes() == before
