"""How well text was read: character and word error rates."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vl.evaluation.metrics.distance import edit_distance

_WRAPPED = re.compile(r'[^"\n]{0,40}\b(?:reads|says)\b:?\s*"(.*)"\s*\.?', re.DOTALL | re.IGNORECASE)


def character_error_rate(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Edits over all pairs divided by the characters of all references; can exceed 1.

    White space around a text does not count. The figure is that of jiwer's `cer`.

    Raises:
        ValueError: if the lists differ in length or the references are empty.
    """
    return _rate([list(text.strip()) for text in references], [list(text.strip()) for text in predictions], "character")


def word_error_rate(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Edits in words over all pairs divided by the words of all references; can exceed 1.

    Words are what white space of any kind parts. The figure is that of jiwer's `wer`, which parts at spaces only.

    Raises:
        ValueError: if the lists differ in length or the references are empty.
    """
    return _rate([text.split() for text in references], [text.split() for text in predictions], "word")


def _rate(references: list[list[str]], predictions: list[list[str]], unit: str) -> float:
    if len(references) != len(predictions):
        raise ValueError(f"{len(references)} references for {len(predictions)} predictions: give one each")
    if not (total := sum(map(len, references))):
        raise ValueError(f"the references hold no {unit}s, so no error rate exists")
    return sum(map(edit_distance, references, predictions)) / total


def read_text(answer: str) -> str:
    """The text inside an answer such as 'The sign says "STOP".'; any other answer as it is, without space around."""
    wrapped = _WRAPPED.fullmatch(answer.strip())
    return (wrapped.group(1) if wrapped else answer).strip()
