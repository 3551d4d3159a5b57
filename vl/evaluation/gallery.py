"""One HTML page, nothing outside it, of the answers that went wrong: pictures, what was asked, expected and said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from preprocessing import load_image
from preprocessing.alpha import Background
from vl.evaluation.evaluate import Result
from vl.evaluation.examples import Row
from vl.evaluation.metrics import METRICS, label, read_text
from vl.evaluation.metrics.distance import spelled_differently
from vl.pages import data_url, render_page

MAX_SIDE = 1024  # px; what a page of small print still can be read at
_MOST = 100
_MARKED = 4000  # characters up to which an answer's differences are marked
_LISTED = 200  # unusable records that are named


_Pieces = list[tuple[str, bool]]  # of a text, each with whether to mark it


@dataclass(frozen=True)
class _Card:
    """A wrong answer as the page shows it."""

    row: Row
    pictures: list[str]
    scores: list[tuple[str, str]]
    expected: _Pieces
    said: _Pieces


def render_gallery(model: str, results: Sequence[Result], most: int = _MOST, *, background: Background = None) -> str:
    """The page, with at most `most` wrong answers to each result, the worst first, and its unusable records.

    Pictures are in it, at most 1024 px wide and high. Whatever comes from the data or the model is escaped.

    Args:
        background: what the model had transparent pictures laid on: its processor's `background`.
    """
    sections = [(result, [_card(row, background) for row in result.failures[:most]]) for result in results]
    return render_page(
        "vl.evaluation", "gallery", model=model, sections=sections, metrics=METRICS, label=label, listed=_LISTED
    )


def _card(row: Row, background: Background) -> _Card:
    assert row.metric is not None
    assert row.answer is not None
    metric = METRICS[row.metric]
    scores = [(label(name), metric.show(name, ratio.value)) for name, ratio in row.scores.items()]
    return _Card(
        row, _pictures(row, background), scores, *_texts(row.references, row.answer, marked="cer" in row.scores)
    )


def _texts(references: Sequence[str], answer: str, marked: bool) -> tuple[_Pieces, _Pieces]:
    """What was expected and said; `marked` asks for their differences, where one short text stands for each."""
    if not marked or len(references) > 1 or len(references[0]) + len(answer) > _MARKED:
        return [("\n".join(references), False)], [(answer, False)]
    before, read, after = answer.partition(read_text(answer))
    expected, said = spelled_differently(references[0], read)
    return expected, [(before, False), *said, (after, False)]


def _pictures(row: Row, background: Background) -> list[str]:
    """Data URLs of the question's images; an image that is gone since is left out."""
    urls = []
    for source in row.pictures():
        try:
            urls.append(data_url(load_image(source, background=background), MAX_SIDE))
        except Exception:  # a damaged page would be worse than a card without its picture
            urls.append("")
    return urls
