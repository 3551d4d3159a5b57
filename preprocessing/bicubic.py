"""Pillow's bicubic resize as compiled loops: the same integers, several times sooner.

Pillow weighs pixels with 22-bit fixed-point coefficients, first along rows and then along columns, and rounds to 8 bits
in between (`Resample.c`). Sums of integers do not depend on their order, so the loops here are free to run over many
rows or columns at once, which is what a vector unit wants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np

BITS = 22
"""Fraction bits of a coefficient: 32 less 8 for the pixel and 2 for the sign and the overshoot."""

STRIP = 32
"""Rows that the first pass takes at a time: a turned strip of a 4000 px wide image still fits a core's own cache."""

_HALVES = ((8, 0x00FF00FF00FF00FF), (16, 0x0000FFFF0000FFFF), (32, 0x00000000FFFFFFFF))
_SHIFTS, _MASKS = (np.array(part, np.uint64) for part in zip(*_HALVES, strict=True))


@dataclass(frozen=True)
class Taps:
    """For each of n output pixels: the `count` input pixels from `first` on that it mixes, and their coefficients.

    `first`, `count`: int32 [n]. `weights`: int32 [n, most], rows padded with zeros.
    """

    first: np.ndarray
    count: np.ndarray
    weights: np.ndarray

    def mix(self, lines: np.ndarray, out: np.ndarray, start: int = 0, end: int | None = None) -> None:
        """Fill lines `start` to `end` of `out` uint8 [n, lanes] from `lines` uint8 [m, lanes]."""
        part = slice(start, end)
        mix(lines, self.first[part], self.count[part], self.weights[part], out[part])


@lru_cache(maxsize=256)
def taps(length: int, target: int) -> Taps:
    """The coefficients for resizing a side of `length` pixels to `target`, rounded as Pillow rounds them."""
    scale = length / target
    stretch = max(scale, 1.0)  # shrinking widens the kernel, so that every pixel counts
    support = 2.0 * stretch
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), length)
    at = first[:, None] + np.arange(int(np.ceil(support)) * 2 + 1)  # [target, most]
    inside = at < last[:, None]
    values = np.where(inside, _kernel((at - centre[:, None] + 0.5) * (1.0 / stretch)), 0.0)
    # Added up from the left, as a loop does; numpy's own sum pairs terms and rounds differently.
    values /= np.cumsum(values, axis=1)[:, -1:]
    fixed = np.trunc(values * (1 << BITS) + np.where(values < 0, -0.5, 0.5))
    return Taps(first.astype(np.int32), (last - first).astype(np.int32), fixed.astype(np.int32))


def _kernel(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -1/2."""
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def compiled(function: Callable[..., None]) -> Any:
    """Compile without the GIL; keep the machine code on disk where some folder can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # a read-only installation without a home
        return numba.njit(nogil=True)(function)


@compiled
def turn(rows: np.ndarray, out: np.ndarray) -> None:
    """A strip of rows uint8 [STRIP or fewer, W, 3] into lines of a column each: uint8 [W, 3 * STRIP]."""
    for x in range(rows.shape[1]):
        for r in range(rows.shape[0]):
            for c in range(3):
                out[x, 3 * r + c] = rows[r, x, c]


@compiled
def turn_back(lines: np.ndarray, top: int, bottom: int, out: np.ndarray) -> None:
    """The other way, into rows `top` to `bottom` of planes: uint8 [W, 3 * STRIP] into uint8 [3, H, W]."""
    width = len(lines)
    words = lines.view(np.uint64)  # eight bytes of a line each
    turned = np.empty((8 * words.shape[1], width // 8), np.uint64)
    block = np.empty(8, np.uint64)
    for eighth in range(width // 8):
        for word in range(words.shape[1]):
            for i in range(8):
                block[i] = words[8 * eighth + i, word]
            # Eight by eight bytes are turned as squares of bytes, of pairs and of fours change places.
            for stage in range(3):
                apart, shift, mask = 1 << stage, _SHIFTS[stage], _MASKS[stage]
                for i in range(8):
                    if not i & apart:
                        moved = (block[i + apart] ^ (block[i] >> shift)) & mask
                        block[i + apart] ^= moved
                        block[i] ^= moved << shift
            for i in range(8):
                turned[8 * word + i, eighth] = block[i]
    planes = turned.view(np.uint8)  # [3 * STRIP, W without a rest]
    whole = width // 8 * 8
    for y in range(top, bottom):
        for c in range(3):
            lane = 3 * (y - top) + c
            out[c, y, :whole] = planes[lane]
            for x in range(whole, width):
                out[c, y, x] = lines[x, lane]


@compiled
def mix(lines: np.ndarray, first: np.ndarray, count: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """Line i of `out` uint8 [n, lanes] is the weighted sum of its taps in `lines` uint8 [m, lanes]."""
    lanes = lines.shape[1]
    sums = np.empty(lanes, np.int32)
    for i in range(len(first)):
        sums[:] = 1 << (BITS - 1)
        for t in range(count[i]):
            weight, line = weights[i, t], lines[first[i] + t]
            for lane in range(lanes):
                sums[lane] += weight * np.int32(line[lane])
        for lane in range(lanes):
            out[i, lane] = min(max(sums[lane] >> BITS, 0), 255)
