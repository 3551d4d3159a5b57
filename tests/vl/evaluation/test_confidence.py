"""Whether a model knows when it is right: against counting all pairs and all bins by hand."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vl.evaluation import Ratio, Row, confidence, draw_confidence
from vl.evaluation.confidence import _curve

Answers = list[tuple[float, bool]]
answers = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.65, 0.9, 0.99, 1.0]), st.booleans()), min_size=1)


def rows(found: Answers) -> list[Row]:
    return [
        Row(str(i), "t", "vqa", scores={"normalised": Ratio(right)}, confidence=said)
        for i, (said, right) in enumerate(found)
    ]


@given(answers)
def test_the_curve_is_what_counting_gives(found: Answers) -> None:
    told = confidence(rows(found))
    assert told is not None
    for point in told.points:
        sure = [right for said, right in found if said >= point.at_least]
        assert point.coverage == len(sure) / len(found)
        assert point.accuracy == (pytest.approx(sum(sure) / len(sure)) if sure else None)
    good, bad = ([said for said, right in found if right == wanted] for wanted in (True, False))
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(good, bad)]
    assert told.auroc == (pytest.approx(np.mean(wins)) if wins else None)


def test_the_calibration_error_is_that_of_tenths() -> None:
    told = confidence(rows([(0.95, True), (0.95, False), (0.55, True), (1.0, True)]))
    assert told is not None
    # In the last tenth 0.95 + 0.95 + 1.0 of three answers against two; in the sixth 0.55 against one.
    assert told.ece == pytest.approx((abs(2.9 - 2) + abs(0.55 - 1)) / 4)
    assert told.to_json()["points"][0] == {"at_least": 0.0, "coverage": 1.0, "accuracy": 0.75}


def test_answers_without_a_confidence_tell_nothing() -> None:
    assert (
        confidence([Row("1", "t", "vqa", scores={"normalised": Ratio(1)}), Row("2", "t", "vqa", error="bad")]) is None
    )


def test_it_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    told = confidence(rows([(0.2, False), (0.6, True), (0.9, True)]))
    assert told is not None
    draw_confidence([("t", told)], tmp_path / "plot.png", "tiny")
    with Image.open(tmp_path / "plot.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_answers_of_one_confidence_come_into_the_curve_together() -> None:
    said, right = np.array([0.2, 0.9, 0.9, 0.9, 1.0]), np.array([False, False, True, True, True])
    for order in ([0, 1, 2, 3, 4], [0, 3, 2, 1, 4]):
        shares, surest = _curve(said, right[order])
        np.testing.assert_allclose(shares, [0.2, 0.8, 1.0])
        np.testing.assert_allclose(surest, [1.0, 0.75, 0.6])
