"""Causal softmax attention with grouped queries over packed sequences and paged keys and values."""

from __future__ import annotations

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
