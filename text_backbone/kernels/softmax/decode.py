"""One new token per sequence against its cache pages: two launches, whatever the lengths, known only to the device.

The keys of all sequences, in blocks, are cut into as many equal shares as the GPU runs programs, so the shares stay
equal however ragged the batch. A share may end in one sequence and go on in the next; program p leaves what it found
for sequence i in row p + i of a scratch tensor (rows are distinct, since p and i only grow along the blocks), and the
second launch joins the rows of each sequence. Nothing depends on a length on the host: a CUDA graph may capture it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from text_backbone.kernels.device import float32_precision, multiprocessors
from text_backbone.kernels.softmax.merge import LN_2, merged
from text_backbone.kernels.softmax.triton import attend, scale_of, tile_keys, tile_width
from text_backbone.packed import Packed

_PROGRAMS_PER_SM = 2
_WARPS = 4
_STAGES = 5  # two hold 32 KiB each on its way; looking up the page before takes stages too
_JOINED = 16  # rows that the second launch takes at a time


@triton.jit
def _shares(past, n, programs, KEYS: tl.constexpr, SEQUENCES: tl.constexpr):
    """Of each sequence its keys, blocks, and the blocks up to its end [SEQUENCES]; the blocks of a share, and all."""
    i = tl.arange(0, SEQUENCES)
    lengths = tl.load(past + i, mask=i < n, other=-1).to(tl.int32) + 1  # the new token is in the pages too
    blocks = (lengths + KEYS - 1) // KEYS
    everything = tl.sum(blocks, axis=0)
    return lengths, blocks, tl.cumsum(blocks, axis=0), (everything + programs - 1) // programs, everything


@triton.jit
def _at(x, i, SEQUENCES: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, SEQUENCES) == i, x, 0), axis=0)


@triton.jit(do_not_specialize=["n", "table_stride"])
def _partial(q, keys, values, page_table, past, slots, accs, logs, n, table_stride, scale,
             GROUP: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
             KEYS: tl.constexpr, PAGE: tl.constexpr, SEQUENCES: tl.constexpr,
             PRECISION: tl.constexpr):  # fmt: skip
    """What one share of the keys has to say: `accs` float32 [rows, heads, D], `logs` [rows, heads], base 2."""
    program, kv_head = tl.program_id(0), tl.program_id(1)
    lengths, blocks, ends, share, everything = _shares(past, n, tl.num_programs(0), KEYS, SEQUENCES)
    first = program * share
    last = tl.minimum(first + share, everything)
    if first < last:
        row, d = tl.arange(0, ROWS), tl.arange(0, WIDE)
        inside = (row < GROUP)[:, None] & (d < D)[None, :]
        real = tl.arange(0, SEQUENCES) < n
        sequences_before = tl.sum(((ends <= first) & real).to(tl.int32), axis=0)
        last_sequence = tl.sum(((ends < last) & real).to(tl.int32), axis=0)
        for sequence in range(sequences_before, last_sequence + 1):
            end = _at(ends, sequence, SEQUENCES)
            begin = end - _at(blocks, sequence, SEQUENCES)
            first_key = (tl.maximum(first, begin) - begin) * KEYS
            last_key = tl.minimum((tl.minimum(last, end) - begin) * KEYS, _at(lengths, sequence, SEQUENCES))
            head = (kv_head * GROUP + row)[:, None] * D + d[None, :]
            x = tl.load(q + sequence * (KV_HEADS * GROUP * D) + head, mask=inside, other=0.0)
            pages = page_table + tl.load(slots + sequence).to(tl.int64) * table_stride
            acc, highest, total = attend(
                tl.zeros([ROWS, WIDE], tl.float32), tl.full([ROWS], float("-inf"), tl.float32),
                tl.zeros([ROWS], tl.float32), x, tl.full([ROWS], 2**31 - 1, tl.int32), first_key, last_key,
                keys, values, pages, kv_head, scale, KV_HEADS, D, WIDE, KEYS, PAGE, True, PRECISION
            )  # fmt: skip
            found = (program + sequence) * (KV_HEADS * GROUP)
            tl.store(accs + found * D + head, acc / total[:, None], mask=inside)
            tl.store(logs + found + kv_head * GROUP + row, highest + tl.log2(total), mask=row < GROUP)


@triton.jit(do_not_specialize=["n", "programs"])
def _join(accs, logs, out, out_logs, past, n, programs,
          HEADS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, KEYS: tl.constexpr, SEQUENCES: tl.constexpr,
          JOINED: tl.constexpr):  # fmt: skip
    """`out` [n, HEADS, D]: one sequence and head, over the programs that saw some of its keys.

    `out_logs` float32 [HEADS, n], if given: the natural logs of the softmaxes' denominators.
    """
    sequence, head = tl.program_id(0), tl.program_id(1)
    _, blocks, ends, share, _ = _shares(past, n, programs, KEYS, SEQUENCES)
    end = _at(ends, sequence, SEQUENCES)
    first = (end - _at(blocks, sequence, SEQUENCES)) // share
    last = (end - 1) // share
    d = tl.arange(0, WIDE)
    acc, total = tl.zeros([WIDE], tl.float32), 0.0
    highest = tl.load(logs + (first + sequence) * HEADS + head)
    for start in range(first, last + 1, JOINED):
        program = start + tl.arange(0, JOINED)
        row = (program + sequence) * HEADS + head
        log = tl.load(logs + row, mask=program <= last, other=float("-inf"))
        inside = (program <= last)[:, None] & (d < D)[None, :]
        values = tl.load(accs + row[:, None] * D + d[None, :], mask=inside, other=0.0)
        top = tl.max(log, axis=0)
        weights = tl.exp2(log - top)
        highest, total, kept, added = merged(highest, total, top, tl.sum(weights, axis=0))
        acc = acc * kept + tl.sum(values * weights[:, None], axis=0) * added
    at = (sequence * HEADS + head) * D + d
    tl.store(out + at, (acc / total).to(out.dtype.element_ty), mask=d < D)
    if out_logs is not None:
        tl.store(out_logs + head * n + sequence, (highest + tl.log2(total)) * LN_2)


def _programs(device: torch.device, kv_heads: int) -> int:
    """Shares that the keys of one key/value head are cut into."""
    if device.type != "cuda":
        return 3  # the interpreter: enough for shares to end within sequences
    return max(1, _PROGRAMS_PER_SM * multiprocessors(device) // kv_heads)


def decode_attention(q: Tensor, packed: Packed, keys: Tensor, values: Tensor, page_table: Tensor) -> Tensor:
    """`reference.paged_attention` where every sequence has one new token.

    Args:
        q: [n, heads, d].
        keys, values: [pages, page_size, kv_heads, d], contiguous, the new tokens already written.
        page_table: int32 [slots, pages].

    Returns:
        [n, heads, d].
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    _run(q, keys, values, packed.past, packed.slots, page_table, out)
    return out


def partial_attention(
    q: Tensor, keys: Tensor, values: Tensor, pages: Tensor | None, tokens: int
) -> tuple[Tensor, Tensor]:
    """Attention of one token, of whatever position, to cached tokens of its sequence.

    Args:
        q: [1, heads, d].
        keys, values: as of `decode_attention`.
        pages: int32 [n], the pages that the `tokens` tokens lie in, in their order; None: the first ones.

    Returns:
        float32 [1, heads, d], and the natural logs of the softmaxes' denominators, float32 [heads, 1].
    """
    if pages is None:
        pages = torch.arange(-(-tokens // keys.shape[1]), dtype=torch.int32, device=q.device)
    before = torch.full((1,), tokens - 1, dtype=torch.int64, device=q.device)  # the last stands for the token
    return partial_attentions(q, keys, values, before, torch.zeros_like(before), pages[None])


def partial_attentions(
    q: Tensor, keys: Tensor, values: Tensor, before: Tensor, slots: Tensor, page_table: Tensor
) -> tuple[Tensor, Tensor]:
    """`partial_attention` of several sequences: q [n, heads, d] to the first `before` + 1 tokens of each.

    Args:
        before, slots: int64 [n].
        page_table: int32 [slots, pages], the pages of each slot in their order.
    """
    out, logs = q.new_empty(q.shape, dtype=torch.float32), q.new_empty(q.shape[1], len(q), dtype=torch.float32)
    _run(q, keys, values, before, slots, page_table, out, logs)
    return out, logs


def _run(
    q: Tensor, keys: Tensor, values: Tensor, past: Tensor, slots: Tensor, page_table: Tensor, out: Tensor,
    out_logs: Tensor | None = None,
) -> None:  # fmt: skip
    """Both launches, to `out` [n, heads, d] and, if given, `out_logs` [heads, n]."""
    q = q.contiguous()
    n, heads, d = q.shape
    page_size, kv_heads = keys.shape[1:3]
    group, programs = heads // kv_heads, _programs(q.device, kv_heads)
    width, tile = tile_width(d), tile_keys(d, q.element_size())
    sequences = triton.next_power_of_2(n)
    accs = torch.empty(programs + n, heads, d, dtype=torch.float32, device=q.device)
    logs = torch.empty(programs + n, heads, dtype=torch.float32, device=q.device)
    _partial[(programs, kv_heads)](
        q, keys, values, page_table, past, slots, accs, logs, n, page_table.stride(0), scale_of(d),
        GROUP=group, KV_HEADS=kv_heads, D=d, WIDE=width, ROWS=max(16, triton.next_power_of_2(group)), KEYS=tile,
        PAGE=page_size, SEQUENCES=sequences, PRECISION=float32_precision(), num_warps=_WARPS, num_stages=_STAGES,
    )  # fmt: skip
    _join[(n, heads)](
        accs, logs, out, out_logs, past, n, programs,
        HEADS=heads, D=d, WIDE=width, KEYS=tile, SEQUENCES=sequences, JOINED=_JOINED,
    )  # fmt: skip
