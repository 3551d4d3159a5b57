"""A chart of a load: latency against the time of sending, and how latencies are distributed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vl.bench.serving.figures import itl, ttft
from vl.bench.serving.load import Sent

_COLOURS = ("#d6336c", "#1c7ed6", "#2b8a3e", "#e8590c", "#7048e8", "#0b7285")


def draw_load(runs: Mapping[str, Sequence[Sent]], path: Path) -> None:
    """One colour for each run, by its name, into one PNG.

    Raises:
        ImportError: without matplotlib.
        OSError: if `path` cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (times, first, between) = plt.subplots(1, 3, figsize=(13.2, 4.2), constrained_layout=True)
    for (name, sent), colour in zip(runs.items(), _COLOURS * len(runs), strict=False):
        answered = [each for each in sent if not each.answer.failure]
        start = min(each.due for each in sent)
        begun = [each.answer.sent - start for each in answered]
        ends = [each.answer.ended - each.answer.sent for each in answered]
        times.scatter(begun, [ttft(each.answer) for each in answered], s=12, color=colour, label=f"{name}, first token")
        times.scatter(begun, ends, s=12, facecolors="none", edgecolors=colour, label=f"{name}, end")
        _distribution(first, [1e3 * ttft(each.answer) for each in answered], colour, name)
        _distribution(between, [1e3 * gap for each in answered for gap in itl(each.answer)], colour, name)
    times.set_title("latency by when it was sent", fontsize=11)
    times.set_xlabel("seconds")
    times.set_ylabel("seconds")
    times.set_ylim(bottom=0)
    for axis, title in ((first, "time to first token"), (between, "inter-token latency")):
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("ms")
        axis.set_xscale("log")
        axis.set_ylabel("part of all at most so long")
        axis.set_ylim(0, 1.02)
    for axis in (times, first, between):
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)


def _distribution(axis: object, values: Sequence[float], colour: str, name: str) -> None:
    if values:
        parts = np.arange(1, len(values) + 1) / len(values)
        axis.step(sorted(values), parts, where="post", color=colour, label=name)  # type: ignore[attr-defined]
