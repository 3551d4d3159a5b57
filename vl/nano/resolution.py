"""What the tiles are for: how well small print is read with them, and from the thumbnail alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vl.errors import ConfigError
from vl.evaluation.evaluate import DEFAULT_BATCH, OnRows, evaluate
from vl.evaluation.tasks import Question, Task
from vl.nano.mix import Mix
from vl.nano.pictures.canvas import SizeRange
from vl.nano.pictures.words import draw_words
from vl.nano.tasks import HELD_OUT, SEED, as_thumbnail, ask_to_describe

if TYPE_CHECKING:
    from vl.model import MiniMaxVL

SIDE = 1344  # px of the canvases' longer side, up to twelve tiles
HEIGHTS = (16, 24, 32, 48, 64, 96)
"""Sizes of type in pixels per em."""


@dataclass(frozen=True)
class Reading:
    """Character error rates of texts printed `height` px high, as tiles and thumbnail show them or the latter alone."""

    height: int
    tiles: float
    thumbnail: float


def read_by_height(
    model: MiniMaxVL,
    count: int,
    heights: Sequence[int] = HEIGHTS,
    batch_size: int = DEFAULT_BATCH,
    *,
    max_new_tokens: int | None = None,
    on_rows: OnRows | None = None,
) -> list[Reading]:
    """Has a model read `count` held-out texts of one to four words per height, twice each.

    The canvases have a longer side of 1344 px; the words, faces and backdrops are those of the task "words".
    """
    readings = []
    for height in heights:
        results = [
            evaluate(model, _task(height, alone), count, batch_size, max_new_tokens=max_new_tokens, on_rows=on_rows)
            for alone in (False, True)
        ]
        readings.append(Reading(height, *(result.scores["cer"] for result in results)))
    return readings


def draw_readings(readings: Sequence[Reading], path: Path, name: str = "") -> None:
    """Draws error rates against heights into a PNG.

    Raises:
        ConfigError: without matplotlib.
        OSError: if `path` cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("plots need matplotlib: pip install 'minimax-vl[eval]'") from error
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    heights = [reading.height for reading in readings]
    for values, colour, label in (
        ([reading.thumbnail for reading in readings], "#adb5bd", "thumbnail alone, 336 px"),
        ([reading.tiles for reading in readings], "#d6336c", f"tiles and thumbnail, {SIDE} px"),
    ):
        axis.plot(heights, [100 * min(value, 1.0) for value in values], marker="o", color=colour, label=label)
    axis.set_xscale("log", base=2)
    axis.set_xticks(heights, [str(height) for height in heights])
    axis.set_ylim(-3, 103)
    axis.minorticks_off()
    axis.grid(alpha=0.25)
    axis.set_xlabel(f"height of the type on a picture of {SIDE} px, in px per em")
    axis.set_ylabel("character error rate, %")
    axis.set_title(f"Small print and dynamic resolution{f', {name}' if name else ''}", fontsize=10)
    axis.legend(fontsize=9)
    figure.savefig(path, dpi=120, format="png")


def _task(height: int, alone: bool) -> Task:
    view = "thumbnail" if alone else "tiles"
    return Task(f"{height} px, {view}", "words of one height", "ocr", partial(_draw, height, alone))


def _draw(height: int, alone: bool, index: int, mix: Mix | None) -> Question:
    rng = np.random.default_rng((SEED, height, index))
    canvas = (SizeRange(SIDE, SIDE, 1.0),)
    image: Image.Image
    image, facts = draw_words(rng, canvas, fonts=(mix or HELD_OUT).typeface, size=height)
    question = ask_to_describe(image, facts.text)
    return as_thumbnail(question) if alone else question
