"""Names for the beginnings of a sequence: the same for the same ids and images, and another one for anything else."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable

from torch import Tensor

from vl.engine.prompt import Prompt


class Keys:
    """The keys of one sequence. What was hashed for one is not hashed again for the next.

    Args:
        prompt: what the sequence begins with.
        ids: its tokens from one position to another, int64 on the host: the prompt's and those written after it.
    """

    def __init__(self, prompt: Prompt, ids: Callable[[int, int], Tensor]) -> None:
        self._prompt, self._ids = prompt, ids
        self._lengths, self._hashed = [0], [hashlib.sha256()]  # of the ids alone; rising
        self._keys: dict[int, bytes] = {}

    def at(self, tokens: int) -> bytes:
        """The key of the first `tokens` tokens. An image is in it as a whole from its first token on.

        All images have the same placeholder ids: their digests tell them apart. A written placeholder is no image, and
        the number of images says which placeholders are.
        """
        if tokens not in self._keys:
            images = self._prompt.images_in(0, tokens).stop
            key = self._ids_until(tokens).copy()
            key.update(b"".join(self._prompt.digests[:images]))
            key.update(b"%d,%d" % (tokens, images))
            self._keys[tokens] = key.digest()
        return self._keys[tokens]

    def _ids_until(self, tokens: int) -> hashlib._Hash:
        at = bisect_right(self._lengths, tokens) - 1
        length, hashed = self._lengths[at], self._hashed[at]
        if length < tokens:
            hashed = hashed.copy()
            hashed.update(self._ids(length, tokens).contiguous().numpy().data)
            self._lengths.insert(at + 1, tokens)
            self._hashed.insert(at + 1, hashed)
        return hashed
