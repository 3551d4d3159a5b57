"""The picture that such tests are known by: scores by length and depth."""

from __future__ import annotations

from pathlib import Path

from vl.errors import ConfigError
from vl.evaluation.niah.results import Result, short


def draw_heat_map(result: Result, path: Path, title: str) -> None:
    """Draws the cells of a result into a PNG: lengths from left to right, depths from top to bottom.

    Cells without a score, of prompts that all failed or were none, are hatched.

    Raises:
        ConfigError: without matplotlib.
        OSError: if `path` cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("heat maps need matplotlib: pip install 'minimax-vl[eval]'") from error
    lengths, cells = result.lengths, result.cells()
    width, height = max(1, len(lengths)), len(cells)
    figure = Figure(figsize=(2.6 + 0.85 * width, 1.7 + 0.5 * height), layout="constrained")
    axis = figure.subplots()
    axis.set_facecolor("#e9ecef")
    axis.patch.set(hatch="///", edgecolor="#adb5bd")
    values = [[float("nan") if cell is None else cell for cell in line] or [float("nan")] for line in cells]
    image = axis.imshow(values, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    for y, line in enumerate(cells):
        for x, cell in enumerate(line):
            if cell is not None:
                colour = "#212529" if 0.1 < cell < 0.9 else "white"  # the ends of the scale are dark
                axis.text(x, y, f"{100 * cell:.0f}", ha="center", va="center", fontsize=9, color=colour)
    axis.set_xticks(range(len(lengths)), [short(length) for length in lengths])
    axis.set_yticks(range(height), [f"{depth:g}" for depth in result.depths])
    axis.set_xlabel("length of the prompt, in tokens")
    axis.set_ylabel("depth of the needle, in %")
    axis.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axis, label="found", format=lambda value, _: f"{value:.0%}")
    figure.savefig(path, dpi=120, format="png")
