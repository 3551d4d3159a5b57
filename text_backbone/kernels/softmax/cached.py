"""Attention of a long chunk to its many cached tokens, on cuDNN: block by block of the cache, merged at the end.

It takes 0.55 of the time of our kernel that reads the pages, even with the copy that makes a block of pages contiguous
(8192 tokens after 24 576 or more, on an H200). cuDNN builds a plan for every new shape, so blocks are powers of two;
FlashAttention takes the few keys that no block holds. Each part brings the log of its softmax's denominator, by which
parts are weighed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention

from text_backbone.kernels.softmax import varlen
from text_backbone.kernels.softmax.triton import chunk_attention, tile_width
from text_backbone.kernels.softmax.varlen import Run
from text_backbone.packed import Packed

_SMALLEST, _LARGEST = 4096, 65536  # keys of a block; the copies of the largest take little memory beside a chunk
_ROWS = 32  # of a merge's program


@triton.jit(do_not_specialize=["tokens"])
def _merge(acc, highest, part, weight, out, tokens, part_token, part_head,
           D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
           FIRST: tl.constexpr, LAST: tl.constexpr):  # fmt: skip
    """Weigh a part against those before it: acc, float32 [heads, tokens, d], is their mean with log-weight `highest`.

    FIRST: there are none before. LAST: the mean goes to `out` [tokens, heads, d].
    """
    head, token = tl.program_id(1), tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDE)
    inside = (token < tokens)[:, None] & (d < D)[None, :]
    row = head.to(tl.int64) * tokens + token
    at = row[:, None] * D + d[None, :]
    new = tl.load(part + token.to(tl.int64)[:, None] * part_token + head * part_head + d[None, :], mask=inside)
    new = new.to(tl.float32)
    log = tl.load(weight + row, mask=token < tokens, other=0.0)
    if not FIRST:
        before = tl.load(highest + row, mask=token < tokens, other=0.0)
        share = 1 / (1 + tl.exp(before - log))  # of the new part; exp may be infinite
        old = tl.load(acc + at, mask=inside, other=0.0)
        new = old + (new - old) * share[:, None]
        top = tl.maximum(before, log)
        log = top + tl.log(tl.exp(before - top) + tl.exp(log - top))
    if LAST:
        to = (token.to(tl.int64)[:, None] * tl.num_programs(1) + head) * D + d[None, :]
        tl.store(out + to, new.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(acc + at, new, mask=inside)
        tl.store(highest + row, log, mask=token < tokens)


def takes(q: Tensor, k: Tensor) -> bool:
    """Whether cuDNN takes a chunk q [T, heads, d] with keys k [T, kv_heads, d]."""
    q, k = (x[None].transpose(1, 2) for x in (q, k))
    return can_use_cudnn_attention(SDPAParams(q, k, k, None, 0.0, True, True))


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
        offsets = varlen.ends(left, q.device)
        out[head:] = chunk_attention(q[head:], offsets, before, slots, left, keys, values, page_table, past + head)
    return out


def _attend(
    q: Tensor, k: Tensor, v: Tensor, past: int, keys: Tensor, values: Tensor, pages: Tensor, out: Tensor
) -> None:
    """The attention, all of it by parts, to `out`; `pages` is the sequence's row of the page table."""
    tokens, heads, d = q.shape
    acc = q.new_empty(heads, tokens, d, dtype=torch.float32)
    highest = q.new_empty(heads, tokens, dtype=torch.float32)
    _launch_merge(acc, highest, *_cudnn(q, k, v, causal=True), out, first=True, last=False)
    for start, stop in blocks(past):
        k, v = (_cached(pool, pages, start, stop).to(q.dtype) for pool in (keys, values))
        attend = _cudnn if stop - start >= _SMALLEST else _flash
        _launch_merge(acc, highest, *attend(q, k, v), out, first=False, last=stop == past)


def blocks(past: int) -> Iterator[tuple[int, int]]:
    """Cuts keys 0 to `past` into blocks of powers of two, the largest first, and what is left."""
    start = 0
    while start < past:
        left = past - start
        size = left if left < _SMALLEST else min(_LARGEST, 1 << left.bit_length() - 1)
        yield start, start + size
        start += size


def _cached(pool: Tensor, pages: Tensor, start: int, stop: int) -> Tensor:
    """Cached rows `start` to `stop` of a sequence, contiguous."""
    page_size = pool.shape[1]
    first = start // page_size
    held = pool.index_select(0, pages[first : -(-stop // page_size)])
    return held.flatten(0, 1)[start - first * page_size : stop - first * page_size]


def _cudnn(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    """The attention [T, heads, d], in whatever layout, and the log of its denominators, float32 [heads, T]."""
    q, k, v = (x[None].transpose(1, 2) for x in (q, k, v))
    out, weight, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal)
    return out[0].transpose(0, 1), weight.view(q.shape[1:3])


def _flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """As `_cudnn`."""
    q_offsets, k_offsets = (varlen.ends(len(x), q.device) for x in (q, k))
    out, weight, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, q_offsets, k_offsets, len(q), len(k), 0.0, False, False
    )
    return out, weight


def _launch_merge(
    acc: Tensor, highest: Tensor, part: Tensor, weight: Tensor, out: Tensor, *, first: bool, last: bool
) -> None:
    tokens, heads, d = part.shape
    if part.stride(2) != 1:
        part = part.contiguous()
    _merge[(triton.cdiv(tokens, _ROWS), heads)](
        acc, highest, part, weight.contiguous(), out, tokens, part.stride(0), part.stride(1),
        D=d, WIDE=tile_width(d), ROWS=_ROWS, FIRST=first, LAST=last, num_warps=4,
    )  # fmt: skip
