from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vl.evaluation.metrics import relaxed_accuracy, relaxed_match


@pytest.mark.parametrize(
    ("reference", "answer", "right"),
    [
        ("100", "105", True),
        ("100", "95", True),
        ("100", "105.1", False),
        ("100", "-100", False),
        ("0", "0.0", True),
        ("0", "0.001", False),
        ("1,000", "1010", True),
        ("1,000", "1", False),
        ("12%", "12", True),
        ("12%", "0.12", True),
        ("0.12", "12%", True),
        ("12%", "1.2%", False),
        ("$1.2 million", "1,200,000", True),
        ("12 km", "12.1", True),
        ("12 km", "12 miles", False),
        ("Germany", "germany.", True),
        ("Germany", "France", False),
        ("Yes", "yes", True),
        ("14", "fourteen", True),
        ("North  America", "north america", True),
        ("2019", "Germany", False),
    ],
)
def test_known_answers(reference: str, answer: str, right: bool) -> None:
    assert relaxed_match(reference, answer) is right


@given(st.floats(-1e9, 1e9), st.floats(0.5, 1.5))
def test_numbers_are_judged_as_chartqa_defines_it(target: float, factor: float) -> None:
    given_value = target * factor
    assume(abs(target) > 1e-6)
    relative = abs(given_value - target) / abs(target)
    assume(abs(relative - 0.05) > 1e-9)
    assert relaxed_match(repr(target), repr(given_value)) == (relative <= 0.05)


def test_accuracy() -> None:
    assert relaxed_accuracy(["10", "red", "3%"], ["10.4", "Red", "5%"]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="one each"):
        relaxed_accuracy([], [])
