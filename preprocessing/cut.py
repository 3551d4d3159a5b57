"""An image that was cut into tiles."""

from __future__ import annotations

import hashlib
from threading import Lock

from torch import Tensor

from preprocessing.grid import Grid


class CutImage:
    """Tiles that several prompts may share: nobody writes to them.

    Attributes:
        tiles: uint8 [n, 3, S, S]. `grid`: how they lie.

    Args:
        digest: `image_digest`, where it is known.
    """

    def __init__(self, tiles: Tensor, grid: Grid, digest: bytes | None = None) -> None:
        self.tiles, self.grid = tiles, grid
        self._digest = digest
        self._lock = Lock()

    @property
    def hashed(self) -> bool:
        """Whether its digest is there."""
        return self._digest is not None

    @property
    def digest(self) -> bytes:
        """`image_digest`, made once: of several threads that ask, the others wait for the first."""
        with self._lock:
            if self._digest is None:
                self._digest = image_digest(self.tiles, self.grid)
            return self._digest


def image_digest(tiles: Tensor, grid: Grid) -> bytes:
    """Of all that an image's features depend on: its tiles, which are on the host, and how they lie."""
    digest = hashlib.sha256(repr(grid).encode())
    digest.update(tiles.contiguous().numpy().data)
    return digest.digest()
