from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl.evaluation.metrics import consensus, exact_match, normalise_answer, normalised_match


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The dogs, and cats!", "dogs and cats"),
        ("a red-and-white ball", "red and white ball"),
        ("Don't know", "dont know"),
        ("10,000", "10000"),
        ("3.5", "3.5"),
        ("two.", "2"),
        ("none", "0"),
        ("U.S.A.", "usa"),
        ("  on   the\ntable ", "on table"),
        ("$5", "$5"),
        ("A", "a"),
    ],
)
def test_normalisation(answer: str, normal: str) -> None:
    assert normalise_answer(answer) == normal


@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing_that_is_ascii(text: str) -> None:
    normal = normalise_answer(text.encode("ascii", "ignore").decode())
    assert normal == " ".join(normal.split())
    assert normalised_match([text], text)


def test_matches() -> None:
    assert exact_match(["yes", "Yes"], " Yes ")
    assert not exact_match(["yes"], "Yes")
    assert normalised_match(["two dogs"], "2 Dogs.")
    assert not normalised_match(["two dogs"], "three dogs")


def test_consensus_is_the_challenges_accuracy() -> None:
    """Of ten people, k gave the answer: 0.3, 0.6, 0.9 and 1 for k = 1, 2, 3 and more (Antol et al., 2015)."""
    for k, accuracy in {0: 0.0, 1: 0.3, 2: 0.6, 3: 0.9, 4: 1.0, 10: 1.0}.items():
        people = ["a red ball"] * k + ["something else"] * (10 - k)
        assert consensus(people, "Red ball") == pytest.approx(accuracy)
    with pytest.raises(ValueError, match="at least 4"):
        consensus(["yes"], "yes")
