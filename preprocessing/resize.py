"""Bicubic resizes of one image, with Pillow's pixels, on several threads.

A resize takes two passes, along the rows and then along the columns, with 8 bits in between. Where the height shrinks
far more than the width, newer versions of Pillow take the passes in the other order, which rounds differently, and the
limit is theirs to move: slivers are left to Pillow. So are all images on processors whose C compilers fuse
multiplications into additions, where Pillow's coefficients may differ in the last bit; and the first small images of a
process, which are done before the compiled loops would be loaded.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from preprocessing.container import available_cpus

MAX_THREADS = 4
"""More threads than this wait for memory."""

SERIAL_PIXELS = 512 * 512
"""Up to this many source pixels, starting threads costs more than it saves."""

SLIVER = 10
"""Images longer than this many times their shorter side are slivers. Pillow 12.3 turns the passes round at 100."""

COMPILED = platform.machine() in ("x86_64", "AMD64")

UNCOMPILED_PIXELS = 1_000_000
"""Source pixels that a process leaves to Pillow. It takes 40 ms for them, the loops 250 ms to be loaded from numba's
cache, and seconds to be compiled where nothing is in it."""

_seen = 0  # source pixels that this process has resized; threads may lose a few of one another's


def resize_planes(image: Image.Image, sizes: Sequence[tuple[int, int]], threads: int | None = None) -> list[np.ndarray]:
    """The pixels of `image.resize(size, BICUBIC)` for each size, by colour.

    Args:
        image: mode RGB.
        sizes: (width, height) in pixels.
        threads: None chooses from the CPUs and the image's size.

    Returns:
        uint8 [3, height, width] per size.
    """
    global _seen
    _seen += image.width * image.height
    if not COMPILED or max(image.size) > SLIVER * min(image.size) or _seen <= UNCOMPILED_PIXELS:
        resized = (np.asarray(image.resize(size, Image.Resampling.BICUBIC)) for size in sizes)
        return [np.ascontiguousarray(pixels.transpose(2, 0, 1)) for pixels in resized]
    return _in_loops(image, sizes, threads)


def _in_loops(image: Image.Image, sizes: Sequence[tuple[int, int]], threads: int | None) -> list[np.ndarray]:
    """`resize_planes` in compiled loops."""
    from preprocessing.bicubic import STRIP, taps, turn, turn_back  # imports numba

    if threads is None:
        threads = 1 if image.width * image.height <= SERIAL_PIXELS else min(available_cpus(), MAX_THREADS)
    image.load()  # before threads read it
    halfway = [np.empty((3, image.height, width), np.uint8) for width, _ in sizes]
    results = [np.empty((3, height, width), np.uint8) for width, height in sizes]

    def rows_pass(top: int, bottom: int) -> None:
        """Both sizes from one reading of the pixels, the larger part of the work."""
        turned = np.zeros((image.width, 3 * STRIP), np.uint8)
        mixed = [np.empty((width, 3 * STRIP), np.uint8) for width, _ in sizes]
        for y in range(top, bottom, STRIP):
            end = min(y + STRIP, bottom)
            # Strip by strip, because taking all pixels out of Pillow at once costs as much as the resize.
            strip = image.crop((0, y, image.width, end)).tobytes()
            turn(np.frombuffer(strip, np.uint8).reshape(end - y, image.width, 3), turned)
            for (width, _), lines, out in zip(sizes, mixed, halfway, strict=True):
                taps(image.width, width).mix(turned, lines)
                turn_back(lines, y, end, out)

    def columns_pass(index: int, colour: int, top: int, bottom: int) -> None:
        plane, out = halfway[index][colour], results[index][colour]
        taps(image.height, sizes[index][1]).mix(plane, out, top, bottom)

    bands = [
        (index, colour, *band)
        for index, (_, height) in enumerate(sizes)
        for colour in range(3)
        for band in _bands(height, threads)
    ]
    if threads == 1:
        rows_pass(0, image.height)
        for band in bands:
            columns_pass(*band)
        return results
    # A pool of its own: it starts in a fraction of a millisecond and leaves nothing behind for a fork to inherit.
    with ThreadPoolExecutor(threads) as pool:
        parts = [pool.submit(rows_pass, *band) for band in _bands(image.height, 2 * threads)]
        for part in parts:
            part.result()
        parts = [pool.submit(columns_pass, *band) for band in bands]
        for part in parts:
            part.result()
    return results


def _bands(length: int, count: int) -> list[tuple[int, int]]:
    """`length` cut into at most `count` consecutive non-empty (start, end) of nearly equal size."""
    count = min(count, length)
    return [(length * i // count, length * (i + 1) // count) for i in range(count)]
