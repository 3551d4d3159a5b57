from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vl.nano.pictures.placing import POSITIONS, Disc, fit_lines, place_block, place_in_cells, throw


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.integers(64, 900), st.integers(64, 900), st.integers(1, 6))
def test_discs_in_cells_are_whole_apart_and_in_reading_order(seed: int, width: int, height: int, count: int) -> None:
    def radius(share: float) -> tuple[float, float]:
        assert 0 <= share < 1
        return 9 + 30 * share, 9 + 30 * share

    placed = place_in_cells(np.random.default_rng(seed), width, height, [radius] * count)
    discs = [disc for _, disc in placed]
    assert 1 <= len(discs) <= count
    assert sorted(which for which, _ in placed) == list(range(len(discs)))
    for disc in discs:
        assert disc.radius + 1 <= disc.x <= width - disc.radius - 1
        assert disc.radius + 1 <= disc.y <= height - disc.radius - 1
        assert all(0.119 < 3 * at / side % 1 < 0.881 for at, side in ((disc.x, width), (disc.y, height)))
    for a, b in combinations(discs, 2):
        assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius + 2
    order = [name for row in POSITIONS for name in row]
    cells = [order.index(disc.position(width, height)) for disc in discs]
    assert cells == sorted(set(cells))


def test_what_finds_no_room_is_left_out_and_the_next_one_is_tried_elsewhere() -> None:
    def small(share: float) -> tuple[float, float]:
        return 10, 10

    def huge(share: float) -> tuple[float, float]:
        return 400, 400

    rng = np.random.default_rng(0)
    assert [which for which, _ in place_in_cells(rng, 300, 300, [small, huge, small])] == [0]
    assert place_in_cells(rng, 300, 300, [huge]) == []


def test_any_cell_is_as_likely() -> None:
    rng = np.random.default_rng(1)
    seen = [place_in_cells(rng, 300, 300, [lambda share: (9, 9)])[0][1].position(300, 300) for _ in range(900)]
    counts = [seen.count(name) for row in POSITIONS for name in row]
    assert 60 < min(counts) <= max(counts) < 145


def test_throwing_stops_at_the_first_that_keeps_apart() -> None:
    placed = [Disc(50, 50, 10, 10)]
    tries = {0: Disc(60, 50, 10, 10), 1: None, 2: Disc(73, 50, 10, 10), 3: Disc(90, 50, 10, 10)}
    assert not throw(tries.__getitem__, 2, placed, 3)
    assert not throw(tries.__getitem__, 3, placed, 3)  # 23 px apart is not more than 10 + 10 + 3
    assert throw(tries.__getitem__, 4, placed, 3)
    assert placed[1:] == [tries[3]]


@given(st.integers(0, 2**32), st.floats(1, 80), st.floats(1, 50), st.floats(0, 10))
def test_blocks_keep_off_the_edges(seed: int, wide: float, high: float, pad: float) -> None:
    left, top = place_block(np.random.default_rng(seed), (100, 70), wide, high, pad)
    assert left >= pad
    assert top >= pad
    assert left + wide <= 100 - pad + 1e-9
    assert top + high <= 70 - pad + 1e-9


def by_ones(words: Sequence[str], rows: int) -> list[Sequence[str]]:
    """All words but the last ones in the first row, and one in each of the others."""
    first = len(words) - rows + 1
    return [words[:first], *([word] for word in words[first:])]


def test_any_number_of_lines_that_fit_is_as_likely() -> None:
    def largest(lines: Sequence[str]) -> float:
        return 40 / max(map(len, lines))

    rng = np.random.default_rng(0)
    drawn = [fit_lines(rng, ["aa", "bb", "cc"], 6.0, by_ones, largest) for _ in range(600)]
    found = {lines: (size, drawn.count((lines, size))) for lines, size in drawn}
    assert {lines: size for lines, (size, _) in found.items()} == {("aa bb", "cc"): 8.0, ("aa", "bb", "cc"): 20.0}
    assert all(240 < count < 360 for _, count in found.values())


def test_words_that_do_not_fit_are_left_out_but_for_one() -> None:
    rng = np.random.default_rng(0)
    few = fit_lines(rng, ["aa", "bb", "cc"], 6.0, by_ones, lambda lines: 7.0 if "cc" not in " ".join(lines) else 5.0)
    assert " ".join(few[0]) == "aa bb"
    assert fit_lines(rng, ["aa", "bb"], 6.0, by_ones, lambda lines: 5.0) == (("aa",), 6.0)
