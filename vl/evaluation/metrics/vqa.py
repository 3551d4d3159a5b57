"""Short answers to questions on pictures: the same string, or the same after the VQA challenge's normalisation."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vl.evaluation.metrics.numbers import NUMBER_WORDS

_ARTICLES = {"a", "an", "the"}
_PARTING = re.compile(r"""[;/\[\]"“”{}()=+\\_<>@,?!\-–—]""")
_APOSTROPHES = str.maketrans("", "", "'’`")
_DIGITS = {word: str(value) for word, value in NUMBER_WORDS.items()} | {"none": "0"}
_MIN_ANNOTATORS = 4


def normalise_answer(text: str) -> str:
    """Lower case, no articles, no punctuation but inside numbers, number words as digits, single spaces.

    After the VQA challenge (Antol et al., 2015). Where that adds missing apostrophes from a list of contractions
    ("dont" becomes "don't"), apostrophes are dropped here, and an answer of nothing but articles keeps them.
    """
    text = text.lower().translate(_APOSTROPHES)
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    text = _PARTING.sub(" ", re.sub(r"\.(?!\d)", "", text))
    words = [_DIGITS.get(word, word) for word in text.split()]
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def exact_match(references: Sequence[str], answer: str) -> bool:
    """Whether an answer is one of the references, character for character but for space around."""
    return answer.strip() in (reference.strip() for reference in references)


def normalised_match(references: Sequence[str], answer: str) -> bool:
    """Whether an answer is one of the references after `normalise_answer`."""
    return normalise_answer(answer) in map(normalise_answer, references)


def consensus(references: Sequence[str], answer: str) -> float:
    """VQA accuracy from 0 to 1: full marks for what three other people said, averaged over leaving each person out.

    Args:
        references: one answer per annotator; the VQA data sets have ten.

    Raises:
        ValueError: for fewer than four annotators, of whom no answer could get full marks.
    """
    if len(references) < _MIN_ANNOTATORS:
        raise ValueError(f"consensus needs the answers of at least {_MIN_ANNOTATORS} people, not {len(references)}")
    given = normalise_answer(answer)
    same = [normalise_answer(reference) == given for reference in references]
    return sum(min(1.0, (sum(same) - own) / 3) for own in same) / len(same)
