"""Features of images that were encoded, for when the same image comes again."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor


class ImageFeatures:
    """Features by the digest of their image, at most `limit` bytes of them; the longest unused go first.

    Attributes:
        nbytes: what they take, where the model is.
        hits, misses: how often an image was found here, and how often one was encoded.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self._kept = limit, OrderedDict[bytes, Tensor]()
        self.nbytes = self.hits = self.misses = 0

    def get(self, digest: bytes) -> Tensor | None:
        """[tokens, hidden], or None."""
        found = self._kept.get(digest)
        if found is not None:
            self.hits += 1
            self._kept.move_to_end(digest)
        return found

    def put(self, digest: bytes, features: Tensor) -> None:
        """Keep `features` if they fit at all: a copy if they are part of a larger tensor, which would be kept whole."""
        if features.nbytes > self.limit or digest in self._kept:
            return
        whole = features.untyped_storage().nbytes() == features.nbytes
        self._kept[digest] = features if whole else features.clone()
        self.nbytes += features.nbytes
        while self.nbytes > self.limit:
            _, oldest = self._kept.popitem(last=False)
            self.nbytes -= oldest.nbytes

    def clear(self) -> None:
        self._kept.clear()
        self.nbytes = 0
