"""Attention of a long chunk to its many cached tokens, on cuDNN: block by block of the cache, merged at the end.

It takes 0.55 of the time of our kernel that reads the pages, even with the copy that makes a block of pages contiguous
(8192 tokens after 24 576 or more, on an H200). cuDNN builds a plan for every new shape, so blocks are powers of two;
FlashAttention takes the few keys that no block holds. Each part brings the log of its softmax's denominator, by which
parts are weighed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from text_backbone.kernels.softmax import library
from text_backbone.kernels.softmax.merge import merge
from text_backbone.kernels.softmax.triton import chunk_attention
from text_backbone.kernels.softmax.varlen import Run
from text_backbone.packed import Packed

_SMALLEST, _LARGEST = 4096, 65536  # keys of a block; the copies of the largest take little memory beside a chunk


def attention(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, run: Run, keys: Tensor, values: Tensor, page_table: Tensor
) -> Tensor:
    """Causal attention of one long chunk to itself and all of the cached tokens before it.

    Args:
        q: [T, heads, d], the rows of `run`, which has a head for cuDNN and cached tokens.
        k, v: [T, kv_heads, d].
        packed: the batch.
        keys, values, page_table: as in `reference.paged_attention`.

    Returns:
        [T, heads, d].
    """
    sequence, head, left = run.sequences.start, run.head, run.longest - run.head
    past, pages = packed.pasts[sequence], page_table[packed.slot_ids[sequence]]
    out = torch.empty_like(q)
    _attend(q[:head], k[:head], v[:head], past, keys, values, pages, out[:head])
    if left:  # rows that cuDNN would need a plan of their own for
        before, slots = packed.past[run.sequences] + head, packed.slots[run.sequences]
        offsets = library.ends(left, q.device)
        out[head:] = chunk_attention(q[head:], offsets, before, slots, left, keys, values, page_table, past + head)
    return out


def _attend(
    q: Tensor, k: Tensor, v: Tensor, past: int, keys: Tensor, values: Tensor, pages: Tensor, out: Tensor
) -> None:
    """The attention, all of it by parts, to `out`; `pages` is the sequence's row of the page table."""
    tokens, heads, d = q.shape
    acc = q.new_empty(tokens, heads, d, dtype=torch.float32)
    logs = q.new_empty(heads, tokens, dtype=torch.float32)
    merge(acc, logs, *library.cudnn(q, k, v, causal=True), first=True)
    for start, stop in blocks(past):
        k, v = (_cached(pool, pages, start, stop).to(q.dtype) for pool in (keys, values))
        merge(acc, logs, *_attention(q, k, v), out if stop == past else None)


def blocks(past: int) -> Iterator[tuple[int, int]]:
    """Cuts keys 0 to `past` into blocks of powers of two, the largest first, and what is left."""
    start = 0
    while start < past:
        left = past - start
        size = left if left < _SMALLEST else min(_LARGEST, 1 << left.bit_length() - 1)
        yield start, start + size
        start += size


def _attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to all keys of a block, and its logs; see `library.flash`."""
    if len(k) >= _SMALLEST:
        return library.cudnn(q, k, v, causal=False)
    return library.flash(q, k, v, library.whole(q, k), causal=False)


def _cached(pool: Tensor, pages: Tensor, start: int, stop: int) -> Tensor:
    """Cached rows `start` to `stop` of a sequence, contiguous."""
    page_size = pool.shape[1]
    first = start // page_size
    held = pool.index_select(0, pages[first : -(-stop // page_size)])
    return held.flatten(0, 1)[start - first * page_size : stop - first * page_size]
