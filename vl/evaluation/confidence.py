"""Whether a model knows when it is right: how likely it held its answers, against how often they are right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vl.errors import ConfigError
from vl.evaluation.examples import Row

LEVELS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
_BINS = 10


@dataclass(frozen=True)
class Point:
    """Of the answers of at least some confidence: what share of all they are, and what share of them is right."""

    at_least: float
    coverage: float
    accuracy: float | None


@dataclass(frozen=True)
class Confidence:
    """What the confidence of answers says about them.

    Attributes:
        said: float64 [n], ascending: the mean probability of each answer's tokens. `right`: bool [n].
        points: at each of `LEVELS`.
        auroc: how often a right answer has more of it than a wrong one, half for equals; None without answers of both.
        ece: expected calibration error (Guo et al., 2017): by how much confidence and accuracy differ, on average over
            tenths of the scale weighed by their answers.
    """

    said: np.ndarray
    right: np.ndarray
    points: tuple[Point, ...]
    auroc: float | None
    ece: float

    def to_json(self) -> dict[str, Any]:
        points = [{"at_least": p.at_least, "coverage": p.coverage, "accuracy": p.accuracy} for p in self.points]
        return {"count": len(self.said), "auroc": self.auroc, "ece": self.ece, "points": points}


def confidence(rows: Iterable[Row]) -> Confidence | None:
    """Of the scored rows whose answers have a confidence; None if there are none."""
    pairs = sorted((row.confidence, row.right) for row in rows if row.error is None and row.confidence is not None)
    if not pairs:
        return None
    said, right = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    points = tuple(_point(said, right, level) for level in LEVELS)
    return Confidence(said, right, points, _auroc(said, right), _calibration_error(said, right))


def _point(said: np.ndarray, right: np.ndarray, level: float) -> Point:
    sure = said >= level
    return Point(level, float(sure.mean()), float(right[sure].mean()) if sure.any() else None)


def _auroc(said: np.ndarray, right: np.ndarray) -> float | None:
    """The Mann-Whitney statistic over the number of pairs."""
    good, bad = said[right], said[~right]
    if not len(good) or not len(bad):
        return None
    below, upto = (np.searchsorted(bad, good, side=side).sum() for side in ("left", "right"))
    return float(below + upto) / (2 * len(good) * len(bad))


def _calibration_error(said: np.ndarray, right: np.ndarray) -> float:
    tenths = np.minimum((said * _BINS).astype(int), _BINS - 1)
    off = (abs((said[tenths == tenth] - right[tenths == tenth]).sum()) for tenth in range(_BINS))
    return float(sum(off)) / len(said)


def _curve(said: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The shares of all answers that are the surest, and how many of these are right.

    Answers of one confidence come in together: which of them is first would be chance, or worse, what sorted them.
    """
    last = np.flatnonzero(np.diff(said[::-1], append=-1.0))  # of each run of equals, the surest first
    return (last + 1) / len(said), right[::-1].cumsum()[last] / (last + 1)


def draw_confidence(named: Sequence[tuple[str, Confidence]], path: Path, title: str = "") -> None:
    """Draws accuracy against coverage, the surest answers first, and accuracy against confidence, into a PNG.

    Raises:
        ConfigError: without matplotlib.
        OSError: if `path` cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("plots need matplotlib: pip install 'minimax-vl[eval]'") from error
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    by_coverage, by_confidence = figure.subplots(1, 2)
    for name, found in named:
        shares, surest = _curve(found.said, found.right)
        label = f"{name}, AUROC {found.auroc:.2f}" if found.auroc is not None else name
        by_coverage.plot(100 * shares, 100 * surest, label=label)
        groups = [group for group in np.array_split(np.arange(len(found.said)), _BINS) if len(group)]
        points = [(100 * found.said[group].mean(), 100 * found.right[group].mean()) for group in groups]
        by_confidence.plot(*zip(*points, strict=True), marker="o", label=f"{name}, ECE {found.ece:.2f}")
    by_confidence.plot((0, 100), (0, 100), color="#adb5bd", linestyle="--", linewidth=1)
    by_coverage.set_xlabel("answers, the surest first, %")
    by_confidence.set_xlabel("mean token probability, %, by tenths of the answers")
    for axis in (by_coverage, by_confidence):
        axis.set_ylabel("right, %")
        axis.set_ylim(-3, 103)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    figure.suptitle(f"Confidence and correctness{f', {title}' if title else ''}", fontsize=11)
    figure.savefig(path, dpi=120, format="png")
