"""Needles in print."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

import vl
from vl.evaluation.niah import Grid, cases, drawn_hay, file_hay
from vl.evaluation.niah.pages import LINES, SIDE, draw_page, set_lines


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The lines of every page that is drawn."""
    pages: list[list[str]] = []

    def draw(lines: list[str]) -> Image.Image:
        pages.append(list(lines))
        return draw_page(lines)

    monkeypatch.setattr(cases, "draw_page", draw)
    return pages


@pytest.mark.parametrize(("depth", "page", "line"), [(0, 0, 0), (50, 1, LINES // 2), (100, 2, LINES - 1)])
def test_the_needle_is_printed_at_its_depth(
    tiny_model: vl.MiniMaxVL, printed: list[list[str]], depth: float, page: int, line: int
) -> None:
    of_page = tiny_model.processor.patcher.grid(SIDE, SIDE).tokens  # type: ignore[union-attr]
    (case,) = Grid((3 * of_page + of_page // 2,), (depth,), 1, distractors=2, pages=True).cases()
    inputs = case.prepare(tiny_model.processor)
    assert len(inputs.grids) == len(printed) == 3
    assert 3 * of_page < len(inputs) <= case.length
    needles = [(p, n) for p, lines in enumerate(printed) for n, text in enumerate(lines) if case.reference in text]
    assert needles == [(page, pytest.approx(line, abs=1))]
    assert sum("The code of the" in text for lines in printed for text in lines) == 3
    assert all(len(lines) == LINES for lines in printed)


def test_every_line_is_seen() -> None:
    ink = np.asarray(draw_page(set_lines(drawn_hay(Random(0)), LINES)).convert("L")) < 128
    assert ink.shape == (SIDE, SIDE)
    rows = ink.any(1)
    assert np.count_nonzero(np.diff(rows.astype(int)) == 1) == LINES, "lines apart, none cut off"
    assert not rows[-5:].any()
    assert not ink[:, -28:].any()
    assert not (np.asarray(draw_page([])) < 255).any()


def test_long_sentences_are_broken(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A word and " * 30 + "end.\nNext.")
    lines = set_lines(file_hay([tmp_path / "a.txt"])(Random(0)), 9)
    assert len(lines) == 9
    assert all(len(line) <= 54 for line in lines)


def test_what_cannot_be_printed_is_said(tiny_model: vl.MiniMaxVL, processor: object) -> None:
    draw_page(["Naïve “quotes” — 5 €, Ж, λ…"])
    with pytest.raises(vl.InputError, match="cannot be printed with '中'"):
        draw_page(["fine", "中文"])
    (small,) = islice(Grid((20,), (0,), 1, pages=True).cases(), 1)
    with pytest.raises(vl.InputError, match="20 tokens are too few: a page and the question take"):
        small.prepare(tiny_model.processor)
    with pytest.raises(vl.InputError, match="text-only"):
        small.prepare(processor)  # type: ignore[arg-type]
