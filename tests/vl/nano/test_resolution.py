"""Small print with tiles and without, read by models that are made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vl
from preprocessing.chat import Conversation
from vl.nano.pictures.canvas import SizeRange
from vl.nano.pictures.words import draw_words
from vl.nano.resolution import SIDE, Reading, draw_readings, read_by_height
from vl.nano.tasks import SEED

MakeParrot = Callable[[Callable[[Conversation], str]], Any]


def test_tiles_are_told_from_thumbnails(parrot: MakeParrot) -> None:
    sizes = []

    def blind_to_thumbnails(conversation: Conversation) -> str:
        (image,) = conversation.images
        assert isinstance(image, Image.Image)
        sizes.append(image.size)
        return "" if image.size == (336, 336) else "x"

    readings = read_by_height(parrot(blind_to_thumbnails), 3, (32, 64))
    assert [reading.height for reading in readings] == [32, 64]
    assert all(reading.thumbnail == 1.0 for reading in readings), "nothing read is every character wrong"
    assert all(0.5 < reading.tiles <= 1.0 for reading in readings)
    assert sizes.count((336, 336)) == 6
    assert sum(max(size) == SIDE for size in sizes) == 6


@pytest.mark.parametrize("size", [16, 40, 96])
def test_print_is_as_high_as_it_says(size: int) -> None:
    for index in range(6):
        rng = np.random.default_rng((SEED, size, index))
        _, facts = draw_words(rng, (SizeRange(SIDE, SIDE, 1.0),), size=size)
        assert facts.size == size
        assert facts.text
        _, (_, top, _, bottom) = facts.boxes[0]
        assert bottom - top == pytest.approx(0.95 * size)


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    draw_readings([Reading(16, 0.9, 1.4), Reading(32, 0.1, 0.8)], tmp_path / "plot.png", "nano")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.format == "PNG"
        assert image.width > 600


def test_no_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(vl.ConfigError, match=r"minimax-vl\[eval\]"):
        draw_readings([Reading(16, 0.9, 1.0)], tmp_path / "plot.png")
