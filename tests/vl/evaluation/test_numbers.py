from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl.evaluation.metrics import (
    counting_error,
    counts_right,
    mean_absolute_error,
    parse_count,
    parse_quantity,
)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("42", 42, ""),
        ("1,234.5", 1234.5, ""),
        ("1.234,5", 1234.5, ""),
        ("1,234", 1234, ""),
        ("1.234.567", 1234567, ""),
        ("12,34,567", 1234567, ""),
        ("1 234\u00a0567", 1234567, ""),
        ("1'000", 1000, ""),
        ("3,5", 3.5, ""),
        (".5", 0.5, ""),
        ("-3e2", -300, ""),
        ("\u22127", -7, ""),
        ("25 %", 25, "%"),
        ("25 percent", 25, "%"),
        ("$-1.5", -1.5, "$"),
        ("-$1.2 million", -1.2e6, "$"),
        ("€5m", 5e6, "€"),
        ("5m", 5, "m"),
        ("3 million people", 3e6, "people"),
        ("12 Hours", 12, "hour"),
        ("10k", 1e4, ""),
        ("2 bn", 2e9, ""),
        ("20 dollars", 20, "$"),
        ("US$20", 20, "$"),
        ("seven", 7, ""),
    ],
)
def test_quantities(text: str, value: float, unit: str) -> None:
    found = parse_quantity(text)
    assert found is not None
    assert found.value == pytest.approx(value)
    assert found.unit == unit


@pytest.mark.parametrize(
    "text",
    [
        "",
        "red",
        "2019 2020",
        "1.2.3",
        "1,2,3",
        "1,234,56",
        "10:30",
        "5/6",
        "about 5",
        "inf",
        "nan",
        "1" * 400,
        "1e999",
        ".",
    ],
)
def test_what_is_no_quantity(text: str) -> None:
    assert parse_quantity(text) is None


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_what_python_prints_is_read(value: float) -> None:
    found = parse_quantity(repr(value))
    assert found is not None
    assert found.value == pytest.approx(value)


@given(st.integers(-(10**12), 10**12))
def test_thousands_separators(value: int) -> None:
    for text in (f"{value:,}", f"{value:,}".replace(",", " "), f"{value:,}.0"):
        found = parse_quantity(text)
        assert found is not None
        assert found.value == value


@given(st.text(max_size=40))
def test_nothing_that_is_said_breaks_the_readers(text: str) -> None:
    parse_quantity(text)
    assert parse_count(text) is None or counting_error(text, text) == 0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("There are 3 circles.", 3),
        ("three", 3),
        ("Twenty-one stars", 21),
        ("twenty five", 25),
        ("1,234 people", 1234),
        ("No, there are 3.", 3),
        ("There are no circles.", 0),
        ("none", 0),
        ("zero", 0),
        ("2.5", None),
        ("many", None),
        ("", None),
    ],
)
def test_counts(text: str, count: int | None) -> None:
    assert parse_count(text) == count


def test_counting_scores() -> None:
    assert counts_right("3", "There are three.")
    assert not counts_right("0", "many")
    assert counting_error("3", "I see 5") == 2
    assert counting_error("3", "many") == 3
    assert mean_absolute_error(["3", "4", "2"], ["three", "6", "?"]) == pytest.approx(4 / 3)
    with pytest.raises(ValueError, match="no whole number"):
        counting_error("many", "3")
    with pytest.raises(ValueError, match="one each"):
        mean_absolute_error(["3"], [])
