"""Charts of a report: one panel per op, time against tokens or sequences, both axes logarithmic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vl.bench.records import OURS, REFERENCE, Record, Report

COLUMNS = 3
_COLOURS = {OURS: "#d6336c", REFERENCE: "#adb5bd"}
_PEERS = ("#1c7ed6", "#2b8a3e", "#e8590c", "#7048e8", "#0b7285")


def draw(report: Report, path: Path) -> bool:
    """Draw every op that has several sizes into one PNG; False if there is none.

    Raises:
        ImportError: without matplotlib.
        OSError: if `path` cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ops = [op for op in report.ops() if len({r.size for r in report.of(op) if r.seconds}) > 1]
    if not ops:
        return False
    columns = min(COLUMNS, len(ops))
    rows = -(-len(ops) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(5.2 * columns, 4.2 * rows + 0.5), squeeze=False, constrained_layout=True
    )
    for axis, op in zip(axes.flat, ops, strict=False):
        _panel(axis, op, report.of(op))
    for axis in axes.flat[len(ops) :]:
        axis.set_visible(False)
    figure.suptitle(f"{report.machine['name']}, {', '.join(_versions(report))}", fontsize=11)
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)
    return True


def _panel(axis: Any, op: str, records: list[Record]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    peers = iter(_PEERS * 2)
    for contender in dict.fromkeys(record.contender for record in records):
        line = _line([(r.size, r.seconds) for r in records if r.contender == contender])
        if not line:
            continue
        ours = contender == OURS
        colour = _COLOURS.get(contender) or next(peers)
        axis.plot(
            *zip(*line, strict=True), marker="o", markersize=4, color=colour, linewidth=2.2 if ours else 1.3,
            label=contender, zorder=3 if ours else 2,
        )  # fmt: skip
    floor = _line([(r.size, r.floor) for r in records])
    axis.plot(*zip(*floor, strict=True), color="#495057", linestyle="--", linewidth=1.2, label="floor", zorder=1)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    sizes = sorted({r.size for r in records})
    axis.set_xticks(sizes, [_short(size) for size in sizes], fontsize=8)
    axis.tick_params(labelsize=8)
    axis.minorticks_off()
    axis.grid(alpha=0.25)
    axis.set_title(op, fontsize=10)
    axis.set_xlabel(records[0].unit)
    axis.set_ylabel("milliseconds")
    axis.legend(fontsize=8)


def _line(points: list[tuple[int, float | None]]) -> list[tuple[int, float]]:
    """Points in milliseconds by size; of cases with one size (1 x 32768, 16 x 2048) the first."""
    first: dict[int, float] = {}
    for size, seconds in points:
        if seconds:
            first.setdefault(size, seconds * 1e3)
    return sorted(first.items())


def _short(size: int) -> str:
    for unit, name in ((2**20, "M"), (2**10, "K")):
        if size >= unit and size % unit == 0:
            return f"{size // unit}{name}"
    return str(size)


def _versions(report: Report) -> list[str]:
    packages = report.machine["packages"]
    return [f"{name} {packages[name]}" for name in ("torch", "triton") if name in packages]
