"""Lazy images: the same tiles as of other images, made when they are asked for, a few at a time."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from PIL import Image

from preprocessing import ImageError, LazyImage, LazyTiles, Patcher, Processor
from preprocessing.lazy import AHEAD

SIZES = [(40, 30), (300, 900), (336, 336), (700, 300), (90, 90), (500, 500)]


class Made(LazyImage):
    """An image of one colour; knows how often it was made, and by which threads."""

    def __init__(self, number: int, size: tuple[int, int]) -> None:
        self.name, self.size, self.digest = f"picture {number}", size, bytes([number])
        self._colour = (10 * number, 255 - 10 * number, 7)
        self.times, self.threads = 0, set[str]()

    def make(self) -> Image.Image:
        self.times += 1
        self.threads.add(threading.current_thread().name)
        return Image.new("RGB", self.size, self._colour)


class Wrong(Made):
    def make(self) -> Image.Image:
        return Image.new("RGB", (self.size[0] + 1, self.size[1]))


def messages(images: list[Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": image} for image in images]}]


@pytest.fixture
def pictures() -> list[Made]:
    return [Made(number, size) for number, size in enumerate(SIZES)]


def test_they_make_the_same_inputs(tiny_model: Any, pictures: list[Made]) -> None:
    processor: Processor = tiny_model.processor
    mixed: list[Any] = [*pictures]
    mixed[2] = pictures[2].make()
    lazy, plain = processor(messages(mixed)), processor(messages([picture.make() for picture in pictures]))
    assert [picture.times for picture in pictures] == [1, 1, 2, 1, 1, 1]
    assert torch.equal(lazy.input_ids, plain.input_ids)
    assert lazy.grids == plain.grids
    assert isinstance(lazy.tiles, LazyTiles)
    assert isinstance(plain.tiles, torch.Tensor)
    assert len(lazy.tiles) == len(plain.tiles)
    for start, stop in ((0, len(plain.tiles)), (1, 3), (3, 4), (2, len(plain.tiles) - 1), (5, 5), (0, 0)):
        assert torch.equal(lazy.tiles[start:stop], plain.tiles[start:stop]), (start, stop)
    for copied in (pickle.loads(pickle.dumps(lazy.tiles)), copy.deepcopy(lazy.tiles)):
        assert torch.equal(copied, plain.tiles)


def test_a_few_are_made_ahead_and_none_twice_in_order(pictures: list[Made]) -> None:
    patcher = Patcher()
    grids = [patcher.grid(*picture.size) for picture in pictures]
    tiles = LazyTiles(pictures, grids, patcher)
    start = 0
    for number, grid in enumerate(grids):
        assert sum(picture.times for picture in pictures) <= number + AHEAD
        tiles[start : start + grid.tiles]
        assert len(tiles._pending) <= AHEAD
        start += grid.tiles
    assert [picture.times for picture in pictures] == [1] * len(pictures)
    assert all(name.startswith("vl-lazy-images") for picture in pictures for name in picture.threads)
    assert not tiles._pending


def test_one_of_another_size_than_was_told_is_named(pictures: list[Made]) -> None:
    patcher = Patcher()
    images = [pictures[0], Wrong(1, (50, 60))]
    tiles = LazyTiles(images, [patcher.grid(*image.size) for image in images], patcher)
    first = patcher.grid(*images[0].size).tiles
    assert len(tiles[:first]) == first
    with pytest.raises(ImageError, match="picture 1 was 50 x 60 and is 51 x 60 now"):
        tiles[first:]


def test_one_that_fails_costs_its_request_alone(tiny_model: Any, pictures: list[Made]) -> None:
    model, other = tiny_model, messages([pictures[0]])
    expected = model.chat(messages([pictures[0].make()]), max_new_tokens=3)
    bad = model.engine.submit(model.processor(messages([pictures[1], Wrong(2, (30, 30))])), params(3))
    good = model.engine.submit(model.processor(other), params(3))
    while not (bad.done and good.done):
        model.engine.step()
    assert good.result().text == expected
    with pytest.raises(ImageError, match="picture 2"):
        bad.result()


def params(tokens: int) -> Any:
    from vl.engine import SamplingParams

    return SamplingParams(max_new_tokens=tokens)
