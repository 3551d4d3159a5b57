"""Memory for kept states: one for each number, made ahead of its use, and no more of it than is allowed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from text_backbone.places import Places


class _Counted(Places):
    """Counts what is made, and fails when told to."""

    def __init__(self) -> None:
        super().__init__(2, (3, 4, 4), torch.device("cpu"))
        self.count, self.room = 0, 100

    def new(self) -> list[Tensor]:
        if self.count == self.room:
            raise MemoryError("no more")
        self.count += 1
        return super().new()


def _addresses(places: Sequence[Sequence[Tensor]]) -> set[int]:
    return {tensor.data_ptr() for place in places for tensor in place}


def test_a_place_is_its_own_and_stays_where_it_is() -> None:
    places = Places(2, (3, 4, 4), torch.device("cpu"))
    first = [places[number] for number in (0, 5, 1)]
    assert [[(tensor.shape, tensor.dtype) for tensor in place] for place in first] == [
        [(torch.Size((3, 4, 4)), torch.float32)] * 2
    ] * 3
    assert len(_addresses(first)) == 6
    assert all(places[number] is place for number, place in zip((0, 5, 1), first, strict=True))


def test_places_are_made_ahead_and_used_before_new_ones() -> None:
    places = _Counted()
    places.make_ahead(3, most=5)
    places.wait()
    assert places.count == 3
    taken = []
    for number, made in enumerate((4, 5, 5, 5, 5)):  # three ahead, until there are five
        taken.append(places[number])
        places.wait()
        assert places.count == made
    assert len(_addresses(taken)) == 10
    assert places[5] is not places[4]  # beyond the number it is made when it is used, as ever
    assert places.count == 6


def test_what_cannot_be_made_ahead_is_an_error_of_whoever_needs_it() -> None:
    places = _Counted()
    places.room = 1
    places.make_ahead(2, most=4)
    places.wait()
    first = places[0]
    places.wait()
    with pytest.raises(MemoryError):
        places[1]
    places.room = 3
    assert places[0] is first
    assert len(_addresses([first, places[1], places[2]])) == 6
