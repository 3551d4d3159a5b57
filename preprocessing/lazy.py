"""Images whose size is known before their pixels are made: what hundreds of pages need to be in one prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from preprocessing.cut import CutImage
from preprocessing.errors import ImageError
from preprocessing.grid import Grid
from preprocessing.patcher import Patcher

AHEAD = 2  # images that are made in the background after the one that is due


class LazyImage(ABC):
    """An image that is made when its tiles are due, and made anew each time.

    Attributes:
        name: what errors call it.
        size: (width, height) in pixels.
        digest: equal ones say that the pixels are equal.
    """

    name: str
    size: tuple[int, int]
    digest: bytes

    @abstractmethod
    def make(self) -> Image.Image:
        """The upright RGB image. Raises ImageError, or InputError, if it cannot be made."""


class LazyTiles:
    """The tiles of some images, as the tensor uint8 [n, 3, S, S] that a slice of it gives.

    Args:
        images: of each image its tiles, or what they are made of; those make no tiles until they are asked for.
            Of one that was cut the tiles are shared: what a slice gives of it is not to be written to.
        grids: one per image.
    """

    def __init__(
        self, images: Sequence[Tensor | LazyImage | CutImage], grids: Sequence[Grid], patcher: Patcher
    ) -> None:
        self.images = tuple(images)
        self.side = patcher.tile
        self._patcher = patcher
        self._ends = list(accumulate(grid.tiles for grid in grids))
        self._pending: dict[int, Future[Tensor]] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: slice) -> Tensor:
        """uint8 [n, 3, S, S]. Raises what `LazyImage.make` does."""
        start, stop, _ = index.indices(len(self))
        first, last = bisect_right(self._ends, start), bisect_right(self._ends, stop - 1)
        if start >= stop:
            return torch.empty(0, 3, self.side, self.side, dtype=torch.uint8)
        parts = [self._tiles(image) for image in range(first, last + 1)]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        begin = self._ends[first - 1] if first else 0
        return whole[start - begin : stop - begin]

    def lazy(self, image: int) -> LazyImage | None:
        """What the tiles of an image are made of; None if they are there."""
        given = self.images[image]
        return given if isinstance(given, LazyImage) else None

    def cut(self, image: int) -> CutImage | None:
        """An image that was cut; None if it is another."""
        given = self.images[image]
        return given if isinstance(given, CutImage) else None

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Elsewhere they are a tensor: what the images are made of may be here alone."""
        return torch.from_numpy, (self[:].numpy(),)

    def _tiles(self, image: int) -> Tensor:
        given = self.images[image]
        if isinstance(given, Tensor):
            return given
        if isinstance(given, CutImage):
            return given.tiles
        made = self._pending.pop(image, None) or self._begin(given)
        for other in [other for other in self._pending if not image < other <= image + AHEAD]:
            self._pending.pop(other).cancel()  # the images are gone through from another place on
        for other in range(image + 1, min(image + 1 + AHEAD, len(self.images))):
            coming = self.images[other]
            if isinstance(coming, LazyImage) and other not in self._pending:
                self._pending[other] = self._begin(coming)
        return made.result()

    def _begin(self, image: LazyImage) -> Future[Tensor]:
        return _thread().submit(_cut, image, self._patcher)


def _cut(image: LazyImage, patcher: Patcher) -> Tensor:
    tiles, grid = patcher(image.make())
    if (grid.width, grid.height) != tuple(image.size):
        width, height = image.size
        raise ImageError(f"{image.name} was {width} x {height} and is {grid.width} x {grid.height} now: read it again")
    return tiles


@cache
def _thread() -> ThreadPoolExecutor:
    """Makes images while those before them are encoded."""
    return ThreadPoolExecutor(1, thread_name_prefix="vl-lazy-images")
