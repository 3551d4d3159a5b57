from __future__ import annotations

from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl.nano.pictures.canvas import SizeRange
from vl.nano.pictures.counts import MAX_COUNT, draw_counts
from vl.nano.pictures.scenes import SHAPES

SIZES = (SizeRange(64, 336, 1.0),)
SCENES = [draw_counts(np.random.default_rng((9, i)), SIZES) for i in range(150)]


def test_a_scene_is_a_function_of_the_generator() -> None:
    for seed in range(5):
        (a, facts), (b, again) = (draw_counts(np.random.default_rng(seed), SIZES) for _ in range(2))
        assert facts == again
        assert a.tobytes() == b.tobytes()
    assert len({image.tobytes() for image, _ in SCENES}) == len(SCENES)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([(64, 64), (64, 336), (336, 336)]), st.integers(1, MAX_COUNT))
def test_shapes_are_whole_apart_and_inked(seed: int, size: tuple[int, int], most: int) -> None:
    image, facts = draw_counts(np.random.default_rng(seed), (SizeRange(*size, 1.0),), max_objects=most)
    assert image.size == (facts.width, facts.height)
    assert 1 <= len(facts.shapes) <= most
    for s in facts.shapes:
        assert s.radius >= 9
        assert s.radius <= s.x <= facts.width - s.radius
        assert s.radius <= s.y <= facts.height - s.radius
        left, top, right, bottom = s.middle
        assert s.rgb in {rgb for _, rgb in image.crop(tuple(map(round, s.middle))).getcolors(1 << 20)}
        assert 0 <= left < s.x < right <= facts.width
        assert 0 <= top < s.y < bottom <= facts.height
    for a, b in combinations(facts.shapes, 2):
        assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius


def test_every_number_is_as_likely_and_many_are_alike() -> None:
    counts = Counter(len(facts.shapes) for _, facts in SCENES)
    assert set(counts) == set(range(1, 10))
    assert max(counts.values()) < 0.25 * len(SCENES)
    alike = Counter()
    for _, facts in SCENES:
        if len(facts.shapes) > 3:
            alike[len({(s.colour, s.shape) for s in facts.shapes})] += 1
    assert set(alike) == {1, 2, 3}
    assert {s.shape for _, facts in SCENES for s in facts.shapes} == set(SHAPES)


def test_kinds_come_most_frequent_first() -> None:
    for _, facts in SCENES:
        names = [(s.colour, s.shape) for s in facts.shapes]
        frequencies = [names.count(name) for name in names]
        assert frequencies == sorted(frequencies, reverse=True)
        assert sum(a != b for a, b in pairwise(names)) == len(set(names)) - 1


def test_they_are_not_bound_to_the_grid() -> None:
    cells = [
        Counter((int(3 * s.x / facts.width), int(3 * s.y / facts.height)) for s in facts.shapes) for _, facts in SCENES
    ]
    assert sum(max(cell.values()) > 1 for cell in cells) > 0.4 * len(SCENES)
    borders = [abs(3 * s.x / facts.width % 1) for _, facts in SCENES for s in facts.shapes]
    assert np.histogram(borders, bins=10, range=(0, 1))[0].min() > 0


@pytest.mark.parametrize("longer", [64, 2016])
def test_edge_sizes(longer: int) -> None:
    for seed in range(4):
        image, facts = draw_counts(np.random.default_rng(seed), (SizeRange(longer, longer, 1.0),))
        assert longer <= max(image.size) <= max(160, longer)
        assert min(s.radius for s in facts.shapes) >= max(9, 0.03 * longer)
