"""Images that were cut, kept for when they come again: a conversation's come with each of its turns."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from io import BytesIO
from threading import Lock
from typing import cast

import numpy as np
import torch
from PIL import Image

from preprocessing.alpha import Background, Colour, read_background
from preprocessing.cut import CutImage
from preprocessing.images import read_image
from preprocessing.lazy import LazyImage
from preprocessing.patcher import Patcher
from preprocessing.sources import ImageSource, label_of, open_source

_Key = tuple[bytes, Patcher, Colour | None]


class KeptImages:
    """Tiles by the content of the file that they were cut from, and by how; the longest unused go first.

    A file is told by its bytes, wherever it comes from: one that has changed under its name is another image.

    Args:
        limit: bytes of tiles that are kept at most.

    Attributes:
        hits: how often an image was neither decoded nor cut.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.nbytes, self.hits = limit, 0, 0
        self._kept: OrderedDict[_Key, CutImage] = OrderedDict()
        self._lock = Lock()

    def __call__(
        self, source: ImageSource, patcher: Patcher, *, name: str | None = None, background: Background = None
    ) -> CutImage:
        """As the patcher cuts what `load_image` reads, which is given the other arguments; raises what that does."""
        ground = read_background(background)
        label = label_of(source) or name or "image"
        with open_source(source, label) as file:
            key = hashlib.file_digest(cast(BytesIO, file), "sha256").digest(), patcher, ground
            found = self._get(key)
            if found is None:
                file.seek(0)
                found = CutImage(*patcher(read_image(file, label, ground)))
                self._put(key, found)
        return found

    def _get(self, key: _Key) -> CutImage | None:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self.hits += 1
                self._kept.move_to_end(key)
            return found

    def _put(self, key: _Key, cut: CutImage) -> None:
        size = cut.tiles.nbytes
        with self._lock:
            if size > self.limit or key in self._kept:
                return
            self._kept[key] = cut
            self.nbytes += size
            while self.nbytes > self.limit:
                _, oldest = self._kept.popitem(last=False)
                self.nbytes -= oldest.tiles.nbytes


def is_encoded(source: ImageSource) -> bool:
    """Whether it is a file, by name or content. What others show could be told by all of their pixels alone, slowly."""
    return not isinstance(source, LazyImage | Image.Image | np.ndarray | torch.Tensor)
