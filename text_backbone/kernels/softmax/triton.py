"""Causal attention to keys and values in cache pages: chunks of a prompt whose earlier tokens are cached.

The rows of a tile are (query, head) pairs of one group, so that the heads that share a key/value head read it once
and single tokens fill a tile with their group. Scores are kept in base 2; sums and maxima are float32.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from text_backbone.kernels.device import HOPPER, capability, float32_precision, multiprocessors
from text_backbone.kernels.softmax.merge import merged

# (rows, warps, stages) of a tile: 2-byte inputs on Hopper and newer, on Ampere (under 99 KiB of shared memory), float32
_TILES = {"hopper": (128, 8, 3), "ampere": (128, 8, 2), "float32": (32, 4, 1)}

_LEAST_SHARE, _MOST_SHARE = 1024, 2**19  # keys of a program; tensor cores round every sum down, by 2**-23 or so
_MOST_KEYS = 128  # of a tile: the scores of more, for small heads, would take all of the registers
_JOINED = 16  # rows of a program


@triton.jit
def attend(acc, highest, total, q, limit, first, last, keys, values, pages, kv_head, scale,
           KV_HEADS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, KEYS: tl.constexpr, PAGE: tl.constexpr,
           MASKED: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Let rows of queries see keys `first` to `last` of a sequence, KEYS at a time: one online softmax.

    Args:
        acc, highest, total: float32 [M, WIDE], [M], [M]; weighted values, largest score and sum of weights so far.
        q: [M, WIDE], the head dimension D padded to WIDE.
        limit: [M], keys that a row may see, at least one of those from `first` on if it is the first call.
        first: a multiple of KEYS.
        pages: the sequence's row of the page table.
        MASKED: whether limits, or the end of the keys, lie between `first` and `last`.
    """
    column, d = tl.arange(0, KEYS), tl.arange(0, WIDE)
    for start in range(first, last, KEYS):
        position = start + column
        if PAGE % KEYS == 0:  # all in one page
            page = tl.load(pages + start // PAGE).to(tl.int64)
            row = page * PAGE + start % PAGE + column
        else:
            page = tl.load(pages + position // PAGE, mask=position < last, other=0).to(tl.int64)
            row = page * PAGE + position % PAGE
        at = ((row * KV_HEADS + kv_head) * D)[:, None] + d[None, :]
        if MASKED or PAGE % KEYS != 0 or D != WIDE:
            # rows that were never written may hold NaN, which a weight of 0 would not silence
            inside = (position < last)[:, None] & (d < D)[None, :]
            k = tl.load(keys + at, mask=inside, other=0.0).to(q.dtype)
            v = tl.load(values + at, mask=inside, other=0.0).to(q.dtype)
        else:
            k = tl.load(keys + at).to(q.dtype)
            v = tl.load(values + at).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale  # [M, KEYS]
        if MASKED:
            scores = tl.where(position[None, :] < tl.minimum(limit, last)[:, None], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weights, axis=1)
        acc = tl.dot(weights.to(q.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        highest = higher
    return acc, highest, total


@triton.jit(do_not_specialize=["table_stride", "splits", "tokens"])
def _chunks(q, out, accs, logs, keys, values, page_table, offsets, past, slots, table_stride, splits, tokens, scale,
            GROUP: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
            KEYS: tl.constexpr, PAGE: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """One tile of the queries of one sequence and group; programs past the end of a short sequence do nothing.

    With SPLIT a program sees one of `splits` shares of the keys, and leaves what it found in `accs` float32 [splits,
    tokens, heads, D] and `logs` [splits, tokens, heads], base 2.
    """
    QUERIES: tl.constexpr = ROWS // GROUP
    kv_head, sequence = tl.program_id(1), tl.program_id(2)
    start = tl.load(offsets + sequence).to(tl.int64)
    length = (tl.load(offsets + sequence + 1) - start).to(tl.int32)
    before = tl.load(past + sequence).to(tl.int32)
    # the last queries see the most keys: they go first, so that no long tile is left for the end
    first_query = ((tl.num_programs(0) - 1 - tl.program_id(0)) // splits) * QUERIES
    split = tl.program_id(0) % splits
    if first_query < length:
        row, d = tl.arange(0, ROWS), tl.arange(0, WIDE)
        query = first_query + row // GROUP
        real = (row < QUERIES * GROUP) & (query < length)
        inside = real[:, None] & (d < D)[None, :]
        line = ((start + query) * KV_HEADS + kv_head) * GROUP + row % GROUP
        at = line[:, None] * D + d[None, :]
        x = tl.load(q + at, mask=inside, other=0.0)
        pages = page_table + tl.load(slots + sequence).to(tl.int64) * table_stride
        acc = tl.zeros([ROWS, WIDE], tl.float32)
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        limit = before + query + 1
        seen_by_all = (before + first_query + 1) // KEYS * KEYS
        last = before + tl.minimum(first_query + QUERIES, length)
        if SPLIT:
            share = tl.cdiv(tl.cdiv(seen_by_all, splits), KEYS) * KEYS
            first_key = split * share
            end = tl.minimum(first_key + share, seen_by_all)
            # the keys that not all rows see are of the first share, in which every row sees some
            last = tl.where(split == 0, last, seen_by_all)
        else:
            first_key, end = 0, seen_by_all
        acc, highest, total = attend(
            acc, highest, total, x, limit, first_key, end, keys, values, pages, kv_head, scale,
            KV_HEADS, D, WIDE, KEYS, PAGE, False, PRECISION
        )  # fmt: skip
        acc, highest, total = attend(
            acc, highest, total, x, limit, seen_by_all, last, keys, values, pages, kv_head, scale,
            KV_HEADS, D, WIDE, KEYS, PAGE, True, PRECISION
        )  # fmt: skip
        if SPLIT:
            acc = acc / tl.where(total > 0, total, 1.0)[:, None]
            line += split.to(tl.int64) * tokens * (KV_HEADS * GROUP)
            tl.store(accs + line[:, None] * D + d[None, :], acc, mask=inside)
            tl.store(logs + line, highest + tl.log2(total), mask=real)
        else:
            tl.store(out + at, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "splits"])
def _joined(accs, logs, out, rows, splits, D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr):
    """`out` [rows, D]: the mean over the splits, by their weights."""
    row, d = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDE)
    real = row < rows
    inside = real[:, None] & (d < D)[None, :]
    acc = tl.load(accs + row[:, None] * D + d[None, :], mask=inside, other=0.0)
    highest = tl.load(logs + row, mask=real, other=0.0)
    total = tl.full([ROWS], 1.0, tl.float32)
    for _ in range(1, splits):
        row += rows
        log = tl.load(logs + row, mask=real, other=0.0)
        part = tl.load(accs + row[:, None] * D + d[None, :], mask=inside, other=0.0)
        highest, total, kept, added = merged(highest, total, log, 1.0)
        acc = acc * kept[:, None] + part * added[:, None]
    row -= (splits - 1) * rows
    tl.store(out + row[:, None] * D + d[None, :], (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)


def tile_width(d: int) -> int:
    """The head dimension as a tile holds it: a power of two, and no less than tensor cores take."""
    return max(16, triton.next_power_of_2(d))


def tile_keys(d: int, itemsize: int) -> int:
    """Keys of a tile: 16 KiB of them, and as much of values."""
    return max(16, 16384 // (tile_width(d) * itemsize))


def scale_of(d: int) -> float:
    """The scale of scores in base 2."""
    return math.log2(math.e) * d**-0.5


def chunk_attention(
    q: Tensor, offsets: Tensor, past: Tensor, slots: Tensor, longest: int, keys: Tensor, values: Tensor,
    page_table: Tensor, most_past: int,
) -> Tensor:  # fmt: skip
    """`reference.paged_attention` for any lengths and pasts; every key is read from the pages.

    Args:
        q: [T, heads, d].
        offsets: [n + 1], rows `offsets[i]` to `offsets[i + 1]` of q are sequence i.
        past, slots: [n], tokens that were cached before these, and the cache slot.
        longest: new tokens of the longest sequence.
        keys, values: [pages, page_size, kv_heads, d], contiguous, the new tokens already written.
        page_table: int32 [slots, pages].
        most_past: the largest of `past`.

    Returns:
        [T, heads, d].
    """
    q = q.contiguous()
    out = torch.empty_like(q)
    page_size, kv_heads, d = keys.shape[1:]
    tokens, heads = q.shape[:2]
    group = heads // kv_heads
    rows, warps, stages = _TILES[_device_class(q)]
    rows = max(rows, triton.next_power_of_2(group))
    tiles = triton.cdiv(longest, rows // group)
    splits = _splits(most_past, tiles * kv_heads * len(past), q.device)
    accs = logs = out  # not touched, unless the keys are split
    if splits > 1:
        accs = q.new_empty(splits, tokens, heads, d, dtype=torch.float32)
        logs = q.new_empty(splits, tokens, heads, dtype=torch.float32)
    _chunks[(tiles * splits, kv_heads, len(past))](
        q, out, accs, logs, keys, values, page_table, offsets, past, slots, page_table.stride(0), splits, tokens,
        scale_of(d), GROUP=group, KV_HEADS=kv_heads, D=d, WIDE=tile_width(d), ROWS=rows,
        KEYS=min(_MOST_KEYS, tile_keys(d, q.element_size())), PAGE=page_size, SPLIT=splits > 1,
        PRECISION=float32_precision(), num_warps=warps, num_stages=stages,
    )  # fmt: skip
    if splits > 1:
        _joined[(triton.cdiv(tokens * heads, _JOINED),)](
            accs, logs, out, tokens * heads, splits, D=d, WIDE=tile_width(d), ROWS=_JOINED
        )
    return out


def _splits(past: int, programs: int, device: torch.device) -> int:
    """Shares of the keys: as many as few queries need to fill the GPU, and none too long to be summed up exactly."""
    busy = multiprocessors(device) if device.type == "cuda" else 8
    return max(min(busy // programs, past // _LEAST_SHARE), triton.cdiv(past, _MOST_SHARE), 1)


def _device_class(x: Tensor) -> str:
    if x.dtype == torch.float32:
        return "float32"
    return "hopper" if capability(x.device) >= HOPPER else "ampere"
