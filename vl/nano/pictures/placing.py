"""Where things go: discs that keep apart, in cells of the 3 x 3 grid or anywhere, and blocks and lines of print."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from vl.nano.pictures.canvas import pick

POSITIONS = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the center", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
_INSET = 0.12  # of a cell's side: off its borders, a position's name is never a matter of opinion
_ATTEMPTS = 12


class Disc(NamedTuple):
    """Room for a thing of some `size`: a circle in pixels."""

    x: float
    y: float
    radius: float
    size: float

    def position(self, width: int, height: int) -> str:
        """The name of the cell of the grid that holds the centre."""
        return POSITIONS[int(3 * self.y / height)][int(3 * self.x / width)]


def throw(draw: Callable[[int], Disc | None], attempts: int, placed: list[Disc], gap: float) -> bool:
    """Adds the first disc drawn that is at least `gap` px from the others; whether any was, in so many attempts."""
    for attempt in range(attempts):
        disc = draw(attempt)
        if disc and all(np.hypot(disc.x - d.x, disc.y - d.y) > disc.radius + d.radius + gap for d in placed):
            placed.append(disc)
            return True
    return False


def place_in_cells(
    rng: Generator, width: int, height: int, things: Sequence[Callable[[float], tuple[float, float]]]
) -> list[tuple[int, Disc]]:
    """Places things, each in a cell of its own, in reading order; those that find no room are left out.

    A thing gives its size and radius for a share, from 0 for its smallest to 1, and is smaller at each attempt. Where
    the smallest of the first fits the middle cell, no picture is empty. Returns (which thing, its disc).
    """
    placed: list[Disc] = []
    cells: list[int] = []

    def draw(cell: int, attempt: int) -> Disc | None:
        (row, col), thing = divmod(cell, 3), things[len(placed)]
        size, radius = thing(rng.random() * (1 - attempt / (_ATTEMPTS - 1)))
        x, y = _coordinate(rng, col, width, radius), _coordinate(rng, row, height, radius)
        return None if x is None or y is None else Disc(x, y, radius, size)

    for cell in map(int, rng.permutation(9)):
        if len(placed) < len(things) and throw(partial(draw, cell), _ATTEMPTS, placed, 2):
            cells.append(cell)
    return [(which, placed[which]) for which in sorted(range(len(placed)), key=cells.__getitem__)]


def _coordinate(rng: Generator, cell: int, extent: int, radius: float) -> float | None:
    """A centre within the cell at which a disc is whole; None where the disc is too large for that."""
    low = max((cell + _INSET) * extent / 3, radius + 1)
    high = min((cell + 1 - _INSET) * extent / 3, extent - radius - 1)
    return float(rng.uniform(low, high)) if low <= high else None


def place_block(
    rng: Generator, canvas: tuple[int, int], wide: float, high: float, pad: float = 0.0
) -> tuple[float, float]:
    """The left and top edge of a block anywhere on a canvas, at least `pad` px from its edges."""
    width, height = canvas
    return pad + rng.random() * (width - 2 * pad - wide), pad + rng.random() * (height - 2 * pad - high)


def fit_lines(
    rng: Generator,
    words: Sequence[str],
    least: float,
    split: Callable[[Sequence[str], int], Iterable[Iterable[str]]],
    largest: Callable[[Sequence[str]], float],
) -> tuple[tuple[str, ...], float]:
    """Breaks words into lines as `split` does, and finds the `largest` size of type at which they fit.

    Any number of lines that fit at `least` is as likely; when none do, the last word is left out. A single word stays,
    at `least`.
    """
    for count in range(len(words), 0, -1):
        broken = (tuple(map(" ".join, split(words[:count], rows))) for rows in range(1, count + 1))
        if fitting := [(lines, size) for lines in broken if (size := largest(lines)) >= least]:
            return pick(rng, fitting)
    return (words[0],), least
