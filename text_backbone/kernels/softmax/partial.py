"""Attention to some of a sequence's keys, merged with that to others in float32, and its part of the gradients.

What a rank needs that has keys and values come in blocks: causal attention within its own sequences, and of some
queries to all keys of a block. On a GPU it is cuDNN's where a plan is worth it, as in `varlen`, and FlashAttention's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from text_backbone.kernels.device import use_gpu_kernels
from text_backbone.kernels.softmax import library, reference, varlen
from text_backbone.kernels.softmax.library import Bounds
from text_backbone.kernels.softmax.varlen import Run
from text_backbone.packed import Packed

Grads = tuple[Tensor, Tensor, Tensor]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
    """Causal attention within each sequence; q [T, heads, d] -> [T, heads, d] and logs [heads, T].

    The logs are natural ones, of the softmaxes' denominators, as in `reference.partial_attention`.
    """
    if not _on_library(q):
        parts = [reference.partial_attention(q[rows], k[rows], v[rows], 0) for rows in _sequences(packed)]
    else:
        parts = [_attend(q[run.rows], k[run.rows], v[run.rows], run) for run in _runs(q, k, packed)]
    outs, logs = zip(*parts, strict=True)
    return (outs[0], logs[0]) if len(parts) == 1 else (torch.cat(outs), torch.cat(logs, dim=1))


def causal_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logs: Tensor, packed: Packed) -> Grads:
    """Gradients of q, k and v within each sequence, in their dtype or wider; see `reference.partial_backward`."""
    parts = []
    if not _on_library(q):
        for r in _sequences(packed):
            parts.append(reference.partial_backward(grad[r], q[r], k[r], v[r], out[r], logs[:, r], 0))
    else:
        for run in _runs(q, k, packed):
            r = run.rows
            parts.append(_differentiate(grad[r], q[r], k[r], v[r], out[r], logs[:, r], run))
    return parts[0] if len(parts) == 1 else _joined(parts)


def block_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of all queries to all keys of one of `tiles`; see `reference.partial_attention`."""
    if not _on_library(q):
        return reference.partial_attention(q, k, v)
    if _planned(q, k):
        return library.cudnn(q, k, v, causal=False)
    return library.flash(q, k, v, library.whole(q, k), causal=False)


def block_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logs: Tensor) -> Grads:
    """Its gradients; see `reference.partial_backward`."""
    if not _on_library(q):
        return reference.partial_backward(grad, q, k, v, out, logs)
    if _planned(q, k):
        return library.cudnn_backward(grad, q, k, v, out, logs, causal=False)
    return library.flash_backward(grad, q, k, v, out, logs, library.whole(q, k), causal=False)


def tiles(q: Tensor, k: Tensor) -> list[tuple[slice, slice]]:
    """How to cut attention of all of q to all of k: most of it in a shape that cuDNN often sees, and what is left."""
    rows, keys = varlen.rounded(len(q)), varlen.rounded(len(k))
    if not (_on_library(q) and _planned(q[:rows], k[:keys])):
        return [(slice(0, len(q)), slice(0, len(k)))]
    cut = [(slice(0, rows), slice(0, keys))]
    if keys < len(k):
        cut.append((slice(0, rows), slice(keys, len(k))))
    if rows < len(q):
        cut.append((slice(rows, len(q)), slice(0, len(k))))
    return cut


class Merged:
    """Attention of some queries to the keys that they have seen so far.

    Args:
        out, logs: [L, heads, d] and [heads, L], to the first of them; not changed.
    """

    def __init__(self, out: Tensor, logs: Tensor) -> None:
        self._acc, self._logs = out.to(logs.dtype, copy=True), logs.clone()
        self._merge: Callable[[Tensor, Tensor, Tensor, Tensor], None] = reference.merge
        if use_gpu_kernels(out):
            from text_backbone.kernels.softmax import merge

            self._merge = merge.merge

    @classmethod
    def nothing(cls, q: Tensor) -> Merged:
        """Of queries that have seen no key yet: 0, with logs of minus infinity."""
        out = torch.zeros_like(q, dtype=torch.promote_types(q.dtype, torch.float32))
        return cls(out, out.new_full((q.shape[1], len(q)), float("-inf")))

    def add(self, rows: slice, part: Tensor, logs: Tensor) -> None:
        """Merge attention of the queries `rows` to other keys."""
        self._merge(self._acc[rows], self._logs[:, rows], part, logs)

    def result(self) -> tuple[Tensor, Tensor]:
        """[L, heads, d] in float32 or wider, and logs [heads, L]."""
        return self._acc, self._logs


def _attend(q: Tensor, k: Tensor, v: Tensor, run: Run) -> tuple[Tensor, Tensor]:
    head = run.head
    if not head:
        return library.flash(q, k, v, _bounds(run), causal=True)
    out, logs = library.cudnn(q[:head], k[:head], v[:head], causal=True)
    if head == len(q):
        return out, logs
    rest, rest_logs = library.flash(q[head:], k, v, library.whole(q[head:], k), causal=True)
    return torch.cat((out, rest)), torch.cat((logs, rest_logs), dim=1)


def _differentiate(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logs: Tensor, run: Run) -> Grads:
    head = run.head
    if not head:
        return library.flash_backward(grad, q, k, v, out, logs, _bounds(run), causal=True)
    first = grad[:head], q[:head], k[:head], v[:head], out[:head], logs[:, :head]
    dq, dk, dv = library.cudnn_backward(*first, causal=True)
    if head == len(q):
        return dq, dk, dv
    rest = grad[head:], q[head:], k, v, out[head:], logs[:, head:]
    dq_rest, dk_rest, dv_rest = library.flash_backward(*rest, library.whole(q[head:], k), causal=True)
    dk_all, dv_all = dk_rest.float(), dv_rest.float()
    dk_all[:head] += dk
    dv_all[:head] += dv
    return torch.cat((dq, dq_rest)), dk_all, dv_all


def _joined(parts: list[Grads]) -> Grads:
    dq, dk, dv = (torch.cat(grads) for grads in zip(*parts, strict=True))  # to the widest of their dtypes
    return dq, dk, dv


def _bounds(run: Run) -> Bounds:
    return Bounds(run.offsets, run.offsets, run.longest, run.longest)


def _sequences(packed: Packed) -> list[slice]:
    return [slice(start, start + length) for start, length in zip(packed.starts, packed.lengths, strict=True)]


def _runs(q: Tensor, k: Tensor, packed: Packed) -> tuple[Run, ...]:
    return packed.memo(varlen.runs_of, q.shape[1] * q.shape[2], _on_cudnn(q, k))


def _on_library(q: Tensor) -> bool:
    return use_gpu_kernels(q) and varlen.takes(q)


def _on_cudnn(q: Tensor, k: Tensor) -> bool:
    return varlen.prefers_cudnn(q.device) and library.cudnn_takes(q, k)


def _planned(q: Tensor, k: Tensor) -> bool:
    """Whether cuDNN takes attention of all of q to all of k: the shape is one of few, and worth a plan."""
    if varlen.rounded(len(q)) != len(q) or varlen.rounded(len(k)) != len(k):
        return False
    return varlen.worth_a_plan(len(q), len(k), q.shape[1] * q.shape[2]) and _on_cudnn(q, k)
