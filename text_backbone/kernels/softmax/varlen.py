"""Attention within sequences on the kernels that PyTorch brings along: FlashAttention, and cuDNN for long prompts.

FlashAttention takes all sequences of a batch in one launch, forward and backward. cuDNN is 1.7 times as fast on an
H200 but builds a plan for every new shape, which takes 25 to 100 ms: it gets long sequences only, and of those a head
that is one of eight lengths per power of two. FlashAttention adds the few rows that are left. It is not called through
`torch.nn.attention.varlen`, which prefers cuDNN in newer releases, with a plan per batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from text_backbone.kernels.device import capability
from text_backbone.kernels.softmax import library
from text_backbone.packed import Packed

# A plan has to be worth it: 64 heads of 128 at 4096 tokens, or as many products.
_LONG_TOKENS, _LONG_WORK = 4096, 2**37
_STEPS = 8  # lengths per power of two that cuDNN sees


@dataclass(frozen=True)
class Run:
    """Neighbouring sequences of a batch that are computed together.

    Attributes:
        sequences, rows: which of the batch, and which of its tokens.
        longest: tokens of the longest of them.
        offsets: int32 [n + 1], where each lies within the run.
        cached: whether they have tokens in the cache.
        head: tokens that cuDNN takes, 0 if none; such a run is one sequence.
    """

    sequences: slice
    rows: slice
    longest: int
    offsets: Tensor
    cached: bool
    head: int


def takes(q: Tensor) -> bool:
    """Whether FlashAttention takes q [T, heads, d]."""
    d = q.shape[2]
    return q.dtype in (torch.bfloat16, torch.float16) and d % 8 == 0 and d <= 256 and _has_flash()


def flash_attention(q: Tensor, k: Tensor, v: Tensor, packed: Packed) -> Tensor:
    """`reference.softmax_attention` in one launch, and one backward."""
    offsets = packed.memo(_offsets)
    return _flash(q, k, v, offsets, offsets, packed.longest, packed.longest)


def prefill_attention(q: Tensor, k: Tensor, v: Tensor, run: Run) -> Tensor:
    """Causal attention within each sequence of `run`, not differentiable; q, k and v [T, ...] are the run's rows."""
    if not run.head:
        return _flash(q, k, v, run.offsets, run.offsets, run.longest, run.longest)
    tokens, head = run.longest, run.head
    q_head, k_head, v_head = (x[None, :head].transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
        out = F.scaled_dot_product_attention(q_head, k_head, v_head, is_causal=True, enable_gqa=True)
    out = out.transpose(1, 2)[0]  # [head, heads, d]
    if head == tokens:
        return out
    left = tokens - head
    q_offsets, k_offsets = (library.ends(n, q.device) for n in (left, tokens))
    return torch.cat((out, _flash(q[head:], k, v, q_offsets, k_offsets, left, tokens)))


def runs_of(packed: Packed, width: int, cudnn: bool) -> tuple[Run, ...]:
    """The batch in runs: short sequences with cached tokens, short ones without, and each long one by itself.

    Args:
        width: heads * d of the queries.
        cudnn: whether to have long runs.
    """
    heads = [_head(n, width) if cudnn else 0 for n in packed.lengths]

    def kind(i: int) -> tuple[bool, int]:
        return packed.pasts[i] > 0, i + 1 if heads[i] else 0

    offsets, found = packed.memo(_offsets), []
    for (cached, _), group in groupby(range(packed.sequences), kind):
        members = list(group)
        first, last = members[0], members[-1]
        start, stop = packed.starts[first], packed.starts[last] + packed.lengths[last]
        longest = max(packed.lengths[first : last + 1])
        within = offsets[first : last + 2] - start
        found.append(Run(slice(first, last + 1), slice(start, stop), longest, within, cached, heads[first]))
    return tuple(found)


def prefers_cudnn(device: torch.device) -> bool:
    """Whether cuDNN is there and the faster one: on Hopper and Blackwell."""
    return capability(device)[0] in (9, 10) and torch.backends.cudnn.is_available()


def rounded(tokens: int) -> int:
    """The largest length that cuDNN sees and that is at most `tokens`: seven eighths of them, at least."""
    step = max(1, 2 ** (tokens.bit_length() - 1) // _STEPS)
    return tokens // step * step


def worth_a_plan(rows: int, keys: int, width: int) -> bool:
    """Whether so many queries and keys, of heads * d = `width`, take cuDNN's plan."""
    return min(rows, keys) >= _LONG_TOKENS and rows * keys * width >= _LONG_WORK


def _head(tokens: int, width: int) -> int:
    """Tokens of a sequence that cuDNN takes: at most `tokens`, 0 if a plan is not worth it."""
    return rounded(tokens) if worth_a_plan(tokens, tokens, width) else 0


def _flash(
    q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_offsets: Tensor, longest_q: int, longest_k: int
) -> Tensor:
    return library.flash(q, k, v, library.Bounds(q_offsets, k_offsets, longest_q, longest_k), causal=True)[0]


def _offsets(packed: Packed) -> Tensor:
    """int32 [n + 1], as the library wants them."""
    return packed.offsets.to(torch.int32)


def _has_flash() -> bool:
    return torch.backends.cuda.is_flash_attention_available()
