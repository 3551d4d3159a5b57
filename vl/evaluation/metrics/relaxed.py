"""Relaxed accuracy: answers to questions on charts and tables, with numbers right to 5%."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vl.evaluation.metrics.numbers import Quantity, parse_quantity

TOLERANCE = 0.05
_WITHIN = re.compile(r"(.+) ± (\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


def relaxed_match(reference: str, answer: str, tolerance: float = TOLERANCE) -> bool:
    """Whether an answer is right as ChartQA (Masry et al., 2022) counts it: a number within 5%, else the same text.

    A reference such as "37 ± 2.5" says by how much a number may be off instead. Numbers are read as `parse_quantity`
    does. Units have to agree where both sides name one. Where only one side has a percent sign, 25% is 25 and 0.25.
    A reference of zero wants zero. Text is compared without case, space around or a closing full stop.
    """
    if _tidy(reference).lower() == _tidy(answer).lower():
        return True
    reference, within = _parts(reference)
    expected, given = parse_quantity(_tidy(reference)), parse_quantity(_tidy(answer))
    if expected is None or given is None:
        return _tidy(reference).lower() == _tidy(answer).lower()
    if expected.unit and given.unit and expected.unit != given.unit:
        return False
    if within:
        return abs(given.value - expected.value) <= float(within) * (1 + 1e-6)
    one_percent = (expected.unit == "%") != (given.unit == "%")
    return any(_close(a, b, tolerance) for a in _readings(expected, one_percent) for b in _readings(given, one_percent))


def without_tolerance(reference: str) -> str:
    """The right answer of a reference that may say by how much a number may be off."""
    return _parts(reference)[0]


def relaxed_accuracy(references: Sequence[str], predictions: Sequence[str], tolerance: float = TOLERANCE) -> float:
    """The share of `relaxed_match` over pairs.

    Raises:
        ValueError: if the lists differ in length or are empty.
    """
    if len(references) != len(predictions) or not references:
        raise ValueError(
            f"{len(references)} references for {len(predictions)} predictions: give one each, at least one"
        )
    return sum(relaxed_match(r, p, tolerance) for r, p in zip(references, predictions, strict=True)) / len(references)


def _parts(reference: str) -> tuple[str, str]:
    """A right answer, and by how much a number may be off; empty where the reference does not say."""
    found = _WITHIN.fullmatch(reference)
    return (found[1], found[2]) if found else (reference, "")


def _readings(quantity: Quantity, one_percent: bool) -> tuple[float, ...]:
    return (quantity.value, quantity.value / 100) if one_percent and quantity.unit == "%" else (quantity.value,)


def _close(expected: float, given: float, tolerance: float) -> bool:
    return abs(given - expected) / abs(expected) <= tolerance if expected else not given


def _tidy(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
