"""The attention kernels that PyTorch brings along, with the logs by which partial attentions are weighed.

The ops are called as `aten` has them: the functions built on them hide the logs, and differentiate for themselves. A
backward that is given the output and the logs of attention to all keys gives the share of these keys in the gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention


class Bounds(NamedTuple):
    """Where sequences lie in the queries and keys that FlashAttention takes: int32 [n + 1] each, and their longest."""

    q_offsets: Tensor
    k_offsets: Tensor
    longest_q: int
    longest_k: int


def whole(q: Tensor, k: Tensor) -> Bounds:
    """All of the queries and keys as one sequence."""
    return Bounds(ends(len(q), q.device), ends(len(k), k.device), len(q), len(k))


def ends(tokens: int, device: torch.device) -> Tensor:
    """int32 [2], the offsets of one sequence; made on the device, where a copy from the host would wait."""
    return torch.arange(0, 2 * tokens, tokens, dtype=torch.int32, device=device)


def flash(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, *, causal: bool) -> tuple[Tensor, Tensor]:
    """FlashAttention within each sequence, differentiable.

    Args:
        q, k, v: [T, heads, d] and [S, kv_heads, d], bfloat16 or float16.
        causal: aligned with the last key.

    Returns:
        [T, heads, d], and the natural logs of the softmaxes' denominators, float32 [heads, T].
    """
    # A longest query of 1 would make it regroup the heads, with another layout of what the backward needs.
    longest_q = max(2, bounds.longest_q)
    out, logs, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, bounds.q_offsets, bounds.k_offsets, longest_q, bounds.longest_k, 0.0, causal, False
    )
    return out, logs


def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logs: Tensor, bounds: Bounds, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, from that of the output [T, heads, d], the output and its logs [heads, T]."""
    unused = torch.empty(2, dtype=torch.uint64, device=q.device)  # the state of dropout
    return torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, logs.contiguous(), bounds.q_offsets, bounds.k_offsets, max(2, bounds.longest_q),
        bounds.longest_k, 0.0, causal, unused, unused,
    )  # fmt: skip


def cudnn_takes(q: Tensor, k: Tensor) -> bool:
    """Whether cuDNN takes q [T, heads, d] with keys k [S, kv_heads, d]."""
    square = len(q) == len(k)
    q, k = (x[None].transpose(1, 2) for x in (q, k))
    return can_use_cudnn_attention(SDPAParams(q, k, k, None, 0.0, square, True))


def cudnn(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """As `flash`, of one sequence: in whatever layout, and causal with as many queries as keys."""
    q, k, v = (x[None].transpose(1, 2) for x in (q, k, v))
    out, logs, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal)
    return out[0].transpose(0, 1), logs.view(q.shape[1:3])


def cudnn_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logs: Tensor, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `flash_backward`, of one sequence."""
    tokens, keys = len(q), len(k)
    grad, q, k, v, out = (x[None].transpose(1, 2) for x in (grad, q, k, v, out))
    unused = torch.zeros(2, dtype=torch.int64, device=q.device).unbind()  # the state of dropout
    grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        grad, q, k, v, out, logs.contiguous()[None, :, :, None], *unused, None, None, None, tokens, keys, 0.0, causal
    )
    dq, dk, dv = (x[0].transpose(0, 1) for x in grads)
    return dq, dk, dv
