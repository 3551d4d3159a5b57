"""The metrics by the name of the skill they judge, as records' `task` fields and `--metric` name them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vl.evaluation.metrics.captions import named_shapes, right_attributes, rouge_l, scene_matches
from vl.evaluation.metrics.counting import counting_error, counts_right
from vl.evaluation.metrics.distance import edit_distance
from vl.evaluation.metrics.error_rates import read_text
from vl.evaluation.metrics.refusals import declines
from vl.evaluation.metrics.relaxed import relaxed_match, without_tolerance
from vl.evaluation.metrics.vqa import consensus, exact_match, normalised_match


class Ratio(NamedTuple):
    """What one example adds to a score: right answers of questions, or edits of characters.

    The score of a set is the sum of the tops over the sum of the bottoms, so that long texts weigh more.
    """

    top: float
    bottom: float = 1.0

    @property
    def value(self) -> float:
        """The example's own score. A text where there should be none counts as one character long."""
        return self.top / (self.bottom or 1.0)


Ratios = dict[str, Ratio]


@dataclass(frozen=True)
class Metric:
    """A way to judge answers.

    `score(references, answer)` gives the ratios of one example; ValueError if its references cannot be used. `main`
    names the score that says whether an answer is right; in `errors` 0 is best, in all others 1; `amounts` are not
    shares and not shown in percent.
    """

    help: str
    main: str
    score: Callable[[Sequence[str], str], Ratios]
    errors: frozenset[str] = frozenset()
    amounts: frozenset[str] = frozenset()

    def total(self, rows: Iterable[Mapping[str, Ratio]]) -> dict[str, float]:
        """The scores of a set, `main` first; a score that nothing adds to is left out."""
        tops: dict[str, float] = {self.main: 0.0}
        bottoms: dict[str, float] = {}
        for row in rows:
            for name, ratio in row.items():
                tops[name] = tops.get(name, 0.0) + ratio.top
                bottoms[name] = bottoms.get(name, 0.0) + ratio.bottom
        return {name: top / bottoms[name] for name, top in tops.items() if bottoms.get(name)}

    def right(self, scores: Mapping[str, Ratio]) -> bool:
        """Whether the main score is full."""
        return self._shortfall(self.main, scores[self.main]) <= 0

    def badness(self, scores: Mapping[str, Ratio]) -> tuple[float, float]:
        """Sorts answers, the worst highest: by the main score, then by all of them."""
        return (
            self._shortfall(self.main, scores[self.main]),
            sum(self._shortfall(name, ratio) for name, ratio in scores.items()),
        )

    def show(self, name: str, value: float) -> str:
        """A score for people: in percent, or with two decimals where it is an amount."""
        return f"{value:.2f}" if name in self.amounts else f"{value:.2%}"

    def _shortfall(self, name: str, ratio: Ratio) -> float:
        return ratio.value if name in self.errors else 1.0 - ratio.value


def label(score: str) -> str:
    """A score's name for people."""
    return score.replace("_", " ")


def _caption(references: Sequence[str], answer: str) -> Ratios:
    best = max(rouge_l(reference, answer) for reference in references)
    return {"rouge_l": Ratio(best), "exact": Ratio(exact_match(references, answer))}


def _scene(references: Sequence[str], answer: str) -> Ratios:
    truth = named_shapes(references[0])
    if not truth:
        raise ValueError(f"the reference {references[0]!r} names no coloured shape")
    return {
        "objects": Ratio(scene_matches(answer, truth)),
        "objects_and_positions": Ratio(scene_matches(answer, truth, positions=True)),
        "exact": Ratio(exact_match(references, answer)),
        "count": Ratio(len(named_shapes(answer)) == len(truth)),
    } | {name: Ratio(right, len(truth)) for name, right in right_attributes(answer, truth).items()}


def _reading(references: Sequence[str], answer: str) -> Ratios:
    return min((_errors(reference, answer) for reference in references), key=lambda ratios: ratios["cer"].value)


def _errors(reference: str, answer: str) -> Ratios:
    """Against one reference. Line breaks and runs of spaces are single spaces, as layout is not what is asked."""
    quoted = read_text(reference) != reference.strip()  # then the lead-in is part of what is printed
    expected, read = (" ".join(text.split()) for text in (reference, answer if quoted else read_text(answer)))
    return {
        "cer": Ratio(edit_distance(expected, read), len(expected)),
        "wer": Ratio(edit_distance(expected.split(), read.split()), len(expected.split())),
        "exact": Ratio(expected == read),
    }


def _relaxed(references: Sequence[str], answer: str) -> Ratios:
    right = any(relaxed_match(reference, answer) for reference in references)
    plain = [without_tolerance(reference) for reference in references]
    return {"relaxed": Ratio(right), "exact": Ratio(exact_match(plain, answer))}


def _vqa(references: Sequence[str], answer: str) -> Ratios:
    return {
        "normalised": Ratio(normalised_match(references, answer)),
        "exact": Ratio(exact_match(references, answer)),
    }


def _consensus(references: Sequence[str], answer: str) -> Ratios:
    return {"consensus": Ratio(consensus(references, answer))} | _vqa(references, answer)


def _counting(references: Sequence[str], answer: str) -> Ratios:
    return {
        "accuracy": Ratio(any(counts_right(reference, answer) for reference in references)),
        "mean_absolute_error": Ratio(min(counting_error(reference, answer) for reference in references)),
    }


def _refusal(_: Sequence[str], answer: str) -> Ratios:
    return {"refused": Ratio(declines(answer))}


_RELAXED = Metric("numbers within 5%, else the same text", "relaxed", _relaxed)

METRICS: dict[str, Metric] = {
    "caption": Metric("ROUGE-L against the best reference", "rouge_l", _caption),
    "scenes": Metric("coloured shapes named, and placed, as in the reference", "objects", _scene),
    "ocr": Metric("character and word error rate", "cer", _reading, errors=frozenset({"cer", "wer"})),
    "chart": _RELAXED,
    "table": _RELAXED,
    "vqa": Metric("the same answer but for articles, punctuation and number words", "normalised", _vqa),
    "consensus": Metric("VQA accuracy: what three of ten annotators said", "consensus", _consensus),
    "counting": Metric(
        "the number in the answer, and how far off it is",
        "accuracy",
        _counting,
        errors=frozenset({"mean_absolute_error"}),
        amounts=frozenset({"mean_absolute_error"}),
    ),
    "refusals": Metric(
        "how often it says that it sees nothing, or cannot tell, where there is an answer",
        "refused",
        _refusal,
        errors=frozenset({"refused"}),
    ),
}
