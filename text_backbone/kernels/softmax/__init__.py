"""Causal softmax attention over packed sequences.

On a GPU: FlashAttention for training and short prompts, cuDNN for long ones and long chunks of them, our kernels for
whatever else reads pages.
"""

from __future__ import annotations

import torch
from torch import Tensor

from text_backbone.kernels.device import use_gpu_kernels
from text_backbone.kernels.softmax import library, reference, varlen
from text_backbone.kernels.softmax.parts import Cached, attention_in_parts
from text_backbone.packed import Packed

__all__ = ["Cached", "attention_in_parts", "paged_attention", "softmax_attention"]


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, packed: Packed) -> Tensor:
    """Causal attention within each sequence; see `reference.softmax_attention`."""
    if not (use_gpu_kernels(q) and varlen.takes(q)):
        return reference.softmax_attention(q, k, v, packed)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return varlen.flash_attention(q, k, v, packed)
    runs = packed.memo(varlen.runs_of, q.shape[1] * q.shape[2], varlen.prefers_cudnn(q.device))
    parts = [varlen.prefill_attention(q[run.rows], k[run.rows], v[run.rows], run) for run in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, keys: Tensor, values: Tensor, page_table: Tensor
) -> Tensor:
    """`softmax_attention` for sequences with tokens in the cache; see `reference.paged_attention`."""
    if not use_gpu_kernels(q):
        return reference.paged_attention(q, k, v, packed, keys, values, page_table)
    from text_backbone.kernels.softmax import cached, decode, triton

    if packed.longest == 1:
        return decode.decode_attention(q, packed, keys, values, page_table)
    if not any(packed.pasts):
        return softmax_attention(q, k, v, packed)
    if not varlen.takes(q):
        return triton.chunk_attention(
            q, packed.offsets, packed.past, packed.slots, packed.longest, keys, values, page_table, max(packed.pasts)
        )
    parts = []
    cudnn = varlen.prefers_cudnn(q.device) and library.cudnn_takes(q, k)
    for run in packed.memo(varlen.runs_of, q.shape[1] * q.shape[2], cudnn):
        new = q[run.rows], k[run.rows], v[run.rows]
        if not run.cached:
            part = varlen.prefill_attention(*new, run)
        elif run.head:
            part = cached.attention(*new, packed, run, keys, values, page_table)
        else:
            before, slots = packed.past[run.sequences], packed.slots[run.sequences]
            most = max(packed.pasts[run.sequences])
            part = triton.chunk_attention(
                new[0], run.offsets, before, slots, run.longest, keys, values, page_table, most
            )
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts)
