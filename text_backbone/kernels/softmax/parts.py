"""Attention of one sequence's new tokens where its cached ones come in parts, not all of them there at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from text_backbone.kernels.device import use_gpu_kernels
from text_backbone.kernels.softmax.partial import Merged, block_attention, causal_attention, tiles
from text_backbone.packed import Packed

_COPIED = 65536  # tokens of scattered pages that are made contiguous at a time


@dataclass(frozen=True)
class Cached:
    """Cached tokens in the pages of a pool.

    Attributes:
        keys, values: [pages, page_size, kv_heads, d], contiguous.
        tokens: how many there are.
        pages: int [n], the pages that they lie in, in their order; None: the pool's first ones.
    """

    keys: Tensor
    values: Tensor
    tokens: int
    pages: Tensor | None = None

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens `start` to `stop`, each [stop - start, kv_heads, d], contiguous."""
        keys, values = self._rows(self.keys, start, stop), self._rows(self.values, start, stop)
        return keys, values

    def _rows(self, pool: Tensor, start: int, stop: int) -> Tensor:
        page_size = pool.shape[1]
        first, end = start // page_size, -(-stop // page_size)
        held = pool[first:end] if self.pages is None else pool.index_select(0, self.pages[first:end])
        return held.flatten(0, 1)[start - first * page_size : stop - first * page_size]


def attention_in_parts(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, parts: Sequence[Callable[[], Cached]]
) -> Tensor:
    """Causal attention of one sequence's new tokens to themselves and, of all of them, to its cached ones.

    Args:
        q: [T, heads, d].
        k: [T, kv_heads, d], of the new tokens.
        v: as `k`.
        packed: that one sequence.
        parts: each brings some of the cached tokens; what it brings is used before the next one is called.

    Returns:
        [T, heads, d]; what is found in each part is merged in float32, or float64.
    """
    merged = Merged(*causal_attention(q, k, v, packed))
    for bring in parts:
        cached = bring()
        if len(q) == 1 and use_gpu_kernels(q):
            from text_backbone.kernels.softmax.decode import partial_attention

            merged.add(slice(0, 1), *partial_attention(q, cached.keys, cached.values, cached.pages, cached.tokens))
        else:
            add_cached(merged, q, cached)
    return merged.result()[0].to(q.dtype)


def add_cached(merged: Merged, q: Tensor, cached: Cached) -> None:
    """Add attention of all of `merged`'s queries q [T, heads, d] to cached tokens."""
    for start in range(0, cached.tokens, _COPIED):
        keys, values = (x.to(q.dtype) for x in cached.rows(start, min(start + _COPIED, cached.tokens)))
        for rows, some in tiles(q, keys):
            merged.add(rows, *block_attention(q[rows], keys[some], values[some]))
