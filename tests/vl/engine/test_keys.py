"""Beginnings have the same key if, and only if, they have the same ids and images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing import Grid
from vl.engine.keys import Keys
from vl.engine.prompt import Prompt

IMAGE = 9
Part = tuple[int, int, int]  # an id below 5, or an image: tokens, what its tiles show, how it lies

texts = st.tuples(st.integers(0, 4), st.just(0), st.just(0))
images = st.tuples(st.integers(5, 7), st.integers(0, 1), st.integers(0, 1))
parts = st.lists(st.one_of(texts, images), max_size=5)


class Lies(Grid):
    """A grid of as many tokens as it says."""

    @property
    def tokens(self) -> int:
        return self.rows

    @property
    def tiles(self) -> int:
        return 1


def prompt_of(sequence: Sequence[Part]) -> Prompt:
    ids, tiles, grids = [], [], []
    for kind, shows, lies in sequence:
        if kind < 5:
            ids.append(kind)
            continue
        ids += [IMAGE] * (kind - 4)
        tiles.append(torch.full((1, 3, 2, 2), shows, dtype=torch.uint8))
        grids.append(Lies(10, 10, 1, 1, lies, 0, 1, kind - 4))
    input_ids = torch.tensor(ids, dtype=torch.int64)
    ends = torch.tensor([grid.tokens for grid in grids], dtype=torch.int64).cumsum(0).tolist()
    stack = torch.cat(tiles) if tiles else torch.empty(0, 3, 2, 2, dtype=torch.uint8)
    places = (input_ids == IMAGE).nonzero().flatten()
    return Prompt(input_ids, stack, grids, places, ends, list(range(1, len(grids) + 1)))


def keys_of(prompt: Prompt, written: Sequence[int] = ()) -> Keys:
    ids = torch.cat((prompt.input_ids, torch.tensor(written, dtype=torch.int64)))
    return Keys(prompt, lambda start, stop: ids[start:stop])


def beginning(sequence: Sequence[Part], written: Sequence[int], tokens: int) -> object:
    """What the key stands for: ids, and of each image that has begun all there is to know."""
    found: list[object] = []
    for kind, shows, lies in sequence:
        found += [kind] if kind < 5 else [(kind, shows, lies, row) for row in range(kind - 4)]
    return [part[:3] if isinstance(part, tuple) else part for part in [*found, *written][:tokens]]


@settings(max_examples=400)
@given(st.data(), parts, parts, st.lists(st.sampled_from([0, IMAGE]), max_size=3))
def test_keys_are_equal_where_beginnings_are(
    data: st.DataObject, first: list[Part], second: list[Part], written: list[int]
) -> None:
    """Written placeholders are ids like others: no images."""
    one, other = prompt_of(first), prompt_of(second)
    if len(one) == 0 or len(other) == 0:
        return
    keys, others = keys_of(one, written), keys_of(other, written)
    for tokens in data.draw(st.permutations(range(1, min(len(one), len(other)) + len(written) + 1))):
        same = beginning(first, written, tokens) == beginning(second, written, tokens)
        assert (keys.at(tokens) == others.at(tokens)) == same


@given(parts, st.randoms(use_true_random=False))
def test_a_key_does_not_depend_on_those_asked_for_before(sequence: list[Part], random: object) -> None:
    prompt = prompt_of(sequence)
    order = list(range(1, len(prompt) + 1))
    expected = {tokens: keys_of(prompt).at(tokens) for tokens in order}
    random.shuffle(order)  # type: ignore[attr-defined]
    keys = keys_of(prompt)
    assert {tokens: keys.at(tokens) for tokens in order} == expected


@settings(max_examples=200)
@given(
    tiles=st.lists(st.integers(0, 255), min_size=12, max_size=12),
    at=st.integers(0, 11),
    change=st.integers(1, 255),
)
def test_one_bit_of_one_pixel_is_another_image(tiles: list[int], at: int, change: int) -> None:
    def digests(values: list[int]) -> list[bytes]:
        stack = torch.tensor(values, dtype=torch.uint8).view(1, 3, 2, 2)
        grids = [Lies(10, 10, 1, 1, 0, 0, 1, 1)]
        return Prompt(torch.tensor([IMAGE]), stack, grids, torch.tensor([0]), [1], [1]).digests

    other = list(tiles)
    other[at] ^= change
    assert digests(tiles) != digests(other)
    assert digests(tiles) == digests(list(tiles))
