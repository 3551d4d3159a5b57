"""Causal softmax attention with grouped queries over packed sequences and paged keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from text_backbone.packed import Packed

MASK_ELEMENTS = 2**26


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, packed: Packed) -> Tensor:
    """Causal attention within each sequence, scale `d ** -0.5`; every sequence starts at its first token here.

    Args:
        q: [T, heads, d].
        k: [T, kv_heads, d]; query head h reads key/value head `h // (heads // kv_heads)`.
        v: as `k`.

    Returns:
        [T, heads, d].
    """
    parts, start = [], 0
    for length, run in groupby(packed.lengths):  # neighbours of equal length go together
        count = sum(1 for _ in run)
        rows = slice(start, start + count * length)
        batch = (x[rows].unflatten(0, (count, length)) for x in (q, k, v))
        parts.append(_causal(*batch).flatten(0, 1))
        start = rows.stop
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, keys: Tensor, values: Tensor, page_table: Tensor
) -> Tensor:
    """`softmax_attention` for sequences whose earlier tokens are in the cache.

    Args:
        q: [T, heads, d], of the new tokens.
        k: [T, kv_heads, d], of the new tokens.
        v: as `k`.
        packed: says where each sequence lies, how long its past is, and its slot.
        keys: [pages, page_size, kv_heads, d], the new tokens already written.
        values: as `keys`.
        page_table: int32 [slots, pages].

    Returns:
        [T, heads, d].
    """
    parts = []
    page_size = keys.shape[1]
    for start, length, past, slot in zip(packed.starts, packed.lengths, packed.pasts, packed.slot_ids, strict=True):
        q_new, k_all, v_all = (x[None, start : start + length] for x in (q, k, v))
        if past:
            pages = page_table[slot, : -(-(past + length) // page_size)]
            k_all, v_all = (
                x.index_select(0, pages).flatten(0, 1)[None, : past + length].to(q.dtype) for x in (keys, values)
            )
        parts.append(_causal(q_new, k_all, v_all)[0])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def partial_attention(q: Tensor, k: Tensor, v: Tensor, past: int | None = None) -> tuple[Tensor, Tensor]:
    """Attention to some of the keys, scale `d ** -0.5`, and how much it weighs beside attention to others.

    Args:
        q: [L, heads, d].
        k: [S, kv_heads, d].
        v: as `k`.
        past: keys before the first query, so that query i sees keys 0 to past + i; None if every query sees all.

    Returns:
        [L, heads, d], and the natural logs of the softmaxes' denominators: [heads, L], in float32, of float64 in that.
    """
    heads, outs, logs = q.shape[1], [], []
    values = _by_key_head(v, k)
    for rows in _slices(q, k):
        scores = _scores(q[rows], k, None if past is None else past + rows.start)
        logs.append(scores.logsumexp(-1))
        weights = (scores - logs[-1].unsqueeze(-1)).exp().view(k.shape[1], -1, len(k))
        outs.append((weights @ values).view(heads, -1, v.shape[2]))
    return torch.cat(outs, dim=1).transpose(0, 1).to(q.dtype), torch.cat(logs, dim=1)


def partial_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logs: Tensor, past: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What these keys contribute to the gradients of attention to all keys.

    Args:
        grad: [L, heads, d], of the output.
        q: as of `partial_attention`.
        k: as of that.
        v: as of that.
        past: as of that.
        out: [L, heads, d], attention to all keys.
        logs: [heads, L], the logs of the denominators over all keys.

    Returns:
        The gradients of q, k and v, in the dtype of `logs`.
    """
    kv_heads, dtype = k.shape[1], logs.dtype
    keys, values = (_by_key_head(x, k) for x in (k, v))
    dq, dk, dv = torch.empty_like(q, dtype=dtype), torch.zeros_like(keys), torch.zeros_like(values)
    for rows in _slices(q, k):
        queries, grads = (_by_key_head(x[rows], k) for x in (q, grad))  # [kv_heads, group * L, d]
        shift = (grad[rows].to(dtype) * out[rows].to(dtype)).sum(-1).T.reshape(kv_heads, -1, 1)
        scores = _scores(q[rows], k, None if past is None else past + rows.start)
        weights = (scores - logs[:, rows].unsqueeze(-1)).exp().view(kv_heads, -1, len(k))
        dv += weights.transpose(1, 2) @ grads
        slopes = weights * (grads @ values.transpose(1, 2) - shift) * q.shape[2] ** -0.5
        dq[rows] = (slopes @ keys).view(q.shape[1], -1, q.shape[2]).transpose(0, 1)
        dk += slopes.transpose(1, 2) @ queries
    return dq, dk.transpose(0, 1), dv.transpose(0, 1)


def merge(acc: Tensor, logs: Tensor, part: Tensor, part_logs: Tensor) -> None:
    """Merge attention to some keys with that to others, in place: acc and part [L, heads, d], their logs [heads, L]."""
    both = torch.logaddexp(logs, part_logs)
    kept, added = ((x - both).exp().T.unsqueeze(-1) for x in (logs, part_logs))
    acc.mul_(kept).add_(part * added)
    logs.copy_(both)


def _slices(q: Tensor, k: Tensor) -> Iterator[slice]:
    """Rows of q whose scores with all of k take a bounded amount of memory."""
    step = max(1, MASK_ELEMENTS // (q.shape[1] * len(k)))
    return (slice(start, min(start + step, len(q))) for start in range(0, len(q), step))


def _scores(q: Tensor, k: Tensor, past: int | None) -> Tensor:
    """[heads, L, S] in at least float32, minus infinity where `past` says that a query does not see a key."""
    scores = _by_key_head(q, k) @ _by_key_head(k, k).transpose(1, 2)
    scores = scores.view(q.shape[1], len(q), len(k)) * q.shape[2] ** -0.5
    if past is None:
        return scores
    seen = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(past)
    return scores.masked_fill_(~seen, float("-inf"))


def _by_key_head(x: Tensor, k: Tensor) -> Tensor:
    """[n, heads, d] -> [kv_heads, group * n, d] in at least float32: a group's queries are the rows of one product."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.to(dtype).transpose(0, 1).reshape(k.shape[1], -1, x.shape[2])


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of the last L of S positions: q [b, L, heads, d], k and v [b, S, kv_heads, d] -> [b, L, heads, d]."""
    length, total = q.shape[1], k.shape[1]
    group = q.shape[2] // k.shape[2]
    if length == 1:  # the queries of a group become the rows of one product, so no key is copied
        q = q[:, 0].unflatten(1, (-1, group))  # [b, kv_heads, group, d]
        return F.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2)).flatten(1, 2)[:, None]
    q = q.transpose(1, 2)
    k, v = (x.transpose(1, 2).repeat_interleave(group, dim=1) if group > 1 else x.transpose(1, 2) for x in (k, v))
    if length == total:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    # is_causal would align the mask with the first key; ours is aligned with the last, a slice of queries at a time
    step = max(1, MASK_ELEMENTS // total)
    parts = []
    for start in range(0, length, step):
        rows = q[:, :, start : start + step]
        seen = torch.ones(rows.shape[2], total, dtype=torch.bool, device=q.device).tril(total - length + start)
        parts.append(F.scaled_dot_product_attention(rows, k, v, attn_mask=seen))
    return torch.cat(parts, dim=2).transpose(1, 2)
