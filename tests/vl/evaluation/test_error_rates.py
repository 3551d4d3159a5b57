from __future__ import annotations

from collections.abc import Callable

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl.evaluation.metrics import character_error_rate, edit_distance, read_text, word_error_rate

WORDS = st.lists(st.text("abcé", min_size=1, max_size=4), min_size=1, max_size=6).map(" ".join)
ANY_WORDS = st.lists(st.text("abcé", min_size=1, max_size=4), max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("kitten", "sitting", 3),
        ("saturday", "sunday", 3),
        ("rosettacode", "raisethysword", 8),
        ("", "abc", 3),
        ("abc", "abc", 0),
        ("gumbo", "gambol", 2),
    ],
)
def test_edit_distance_of_known_pairs(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == distance == edit_distance(b, a)


def test_jiwers_own_examples() -> None:
    assert word_error_rate(["hello world"], ["hello duck"]) == 0.5
    references, predictions = ["hello world", "i like monty python"], ["hello duck", "i like python"]
    assert word_error_rate(references, predictions) == jiwer.wer(references, predictions) == pytest.approx(2 / 6)
    assert character_error_rate(references, predictions) == jiwer.cer(references, predictions)
    assert character_error_rate(["This is a test"], ["  this is  a test "]) == jiwer.cer(
        "This is a test", "this is  a test"
    )


@given(st.lists(st.tuples(WORDS, ANY_WORDS), min_size=1, max_size=4))
def test_rates_are_those_of_jiwer(pairs: list[tuple[str, str]]) -> None:
    references, predictions = [list(side) for side in zip(*pairs, strict=True)]
    assert character_error_rate(references, predictions) == pytest.approx(jiwer.cer(references, predictions))
    assert word_error_rate(references, predictions) == pytest.approx(jiwer.wer(references, predictions))


def test_rates_weigh_by_length_and_can_exceed_one() -> None:
    assert character_error_rate(["sitting", "x"], ["kitten", "y"]) == pytest.approx(4 / 8)
    assert character_error_rate(["ab"], ["abcdef"]) == 2
    assert word_error_rate(["one\ntwo"], ["one two"]) == 0


@pytest.mark.parametrize("rate", [character_error_rate, word_error_rate])
def test_what_has_no_rate(rate: Callable[[list[str], list[str]], float]) -> None:
    with pytest.raises(ValueError, match="one each"):
        rate(["a"], [])
    with pytest.raises(ValueError, match=r"hold no (character|word)s"):
        rate([" "], ["a"])


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ('The text reads "a "b" c".', 'a "b" c'),
        ('The sign says: "STOP"', "STOP"),
        ('The text reads "two\nlines".', "two\nlines"),
        (" plain answer \n", "plain answer"),
        ('She said "no" and left.', 'She said "no" and left.'),
        ('"quoted"', '"quoted"'),
    ],
)
def test_text_inside_an_answer(answer: str, text: str) -> None:
    assert read_text(answer) == text
