"""How many: the number in an answer, and how far off it is."""

from __future__ import annotations

from collections.abc import Sequence

from vl.evaluation.metrics.numbers import parse_count


def counting_error(reference: str, answer: str) -> int:
    """By how many an answer miscounts. An answer without a number counts as zero.

    Raises:
        ValueError: if the reference names no whole number.
    """
    if (expected := parse_count(reference)) is None:
        raise ValueError(f"the reference {reference!r} names no whole number")
    return abs((parse_count(answer) or 0) - expected)


def counts_right(reference: str, answer: str) -> bool:
    """Whether an answer names the number; unlike in `counting_error`, silence is not zero."""
    return parse_count(answer) is not None and counting_error(reference, answer) == 0


def mean_absolute_error(references: Sequence[str], predictions: Sequence[str]) -> float:
    """The mean of `counting_error` over pairs.

    Raises:
        ValueError: if the lists differ in length or are empty, or a reference names no whole number.
    """
    if len(references) != len(predictions) or not references:
        raise ValueError(
            f"{len(references)} references for {len(predictions)} predictions: give one each, at least one"
        )
    return sum(map(counting_error, references, predictions)) / len(references)
