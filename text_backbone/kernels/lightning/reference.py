"""Lightning attention: linear attention with one exponential decay per head.

    S_t = exp(-s) S_{t-1} + k_t^T v_t        o_t = q_t S_t        [q|k|v] = SiLU(the fused projection)

A chunk of C tokens splits its outputs in two (lightning attention 2, arXiv:2401.04658): the part among the tokens of
the chunk is a masked product, the part from before the chunk goes through the state S at its start. Only those states
depend on one another, so everything but a short scan over chunk numbers runs for all chunks of all sequences at once.
Every decay is `exp` of a non-positive number, exact for any slope.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from text_backbone.kernels.lightning.chunks import Chunks, chunked
from text_backbone.kernels.lightning.link import Link
from text_backbone.packed import Packed

WORKSPACE_ELEMENTS = 2**28


def lightning_attention(
    qkv: Tensor, slopes: Tensor, packed: Packed, states: Tensor | None = None, link: Link | None = None
) -> Tensor:
    """Lightning attention over packed sequences, continuing from and updating their cached states.

    Args:
        qkv: [T, heads * 3 * d], the fused projection before SiLU; per head q, k and v.
        slopes: float32 [heads], s >= 0.
        states: float32 [slots, heads, d, d], read and overwritten in place at `packed.slots`; None starts every
            sequence from zero and keeps nothing.
        link: sequences that begin or go on elsewhere; with it, `states` are for its exchange alone.

    Returns:
        [T, heads * d] in `qkv`'s dtype. Decays, products and states are float32 (float64 for float64 input).
    """
    if link is not None:
        return _linked(qkv, slopes, packed, link, states)
    initial = None if states is None else states.index_select(0, packed.slots)
    out, final = lightning_recurrence(qkv, slopes, packed, initial)
    if states is not None:
        states.index_copy_(0, packed.slots, final.to(states.dtype))
    return out


def lightning_recurrence(
    qkv: Tensor, slopes: Tensor, packed: Packed, initial: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same as a differentiable function of `qkv` and of the state [n, heads, d, d] before each sequence.

    Returns:
        The output [T, heads * d] and the state [n, heads, d, d] after each sequence.
    """
    heads = len(slopes)
    x = qkv.unflatten(-1, (heads, 3, -1))  # [T, heads, 3, d]
    d = x.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    slopes = slopes.to(wide)
    if initial is None:
        initial = x.new_zeros(packed.sequences, heads, d, d, dtype=wide)
    with torch.autocast(x.device.type, enabled=False):
        if packed.longest == 1:
            out, final = _step(x, slopes, initial.to(wide))
            return out.flatten(1).to(qkv.dtype), final
        chunks = packed.memo(chunked)
        per_head = len(chunks.filled) * (6 * chunks.size * d + 2 * chunks.size**2 + 3 * d * d)
        group = min(heads, max(1, WORKSPACE_ELEMENTS // per_head))
        parts = [
            _chunked(x[:, h : h + group], slopes[h : h + group], chunks, initial[:, h : h + group].to(wide))
            for h in range(0, heads, group)
        ]
    outs, finals = zip(*parts, strict=True)
    return torch.cat(outs, dim=1).flatten(1), torch.cat(finals, dim=1)


def _linked(qkv: Tensor, slopes: Tensor, packed: Packed, link: Link, states: Tensor | None) -> Tensor:
    """The sequences that give are computed twice: what they give is what they come to without what they get."""
    lengths, starts = ([values[i] for i in link.gives] for values in (packed.lengths, packed.starts))
    ends = torch.cat([qkv[start : start + length] for start, length in zip(starts, lengths, strict=True)])
    _, given = lightning_recurrence(ends, slopes, Packed.of(lengths, device=qkv.device))
    taken = _Exchanged.apply(given, slopes.to(given.dtype), link, states)
    takes = torch.tensor(link.takes, device=qkv.device)
    initial = given.new_zeros(packed.sequences, *given.shape[1:]).index_copy(0, takes, taken)
    return lightning_recurrence(qkv, slopes, packed, initial)[0]


class _Exchanged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor, slopes: Tensor, link: Link, states: Tensor | None) -> Tensor:
        ctx.save_for_backward(slopes)
        ctx.link = link
        return link.exchange(given.contiguous(), slopes, False, states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """With the state before the first token the gradient is the sum of q^T do decayed to the token before that, and
        with the state after the last it is the sum decayed to that token: once more each than a link has it.
        """
        return ctx.link.exchange(grad.contiguous(), ctx.saved_tensors[0], True, None), None, None, None


def _step(x: Tensor, slopes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token per sequence: x [n, heads, 3, d], state [n, heads, d, d] -> out [n, heads, d] and the new state."""
    q, k, v = F.silu(x.to(state.dtype)).unbind(2)  # [n, heads, d]
    state = torch.addcmul(k[..., None] * v[..., None, :], state, torch.exp(-slopes)[:, None, None])
    return (q[..., None] * state).sum(dim=-2), state


def _chunked(x: Tensor, slopes: Tensor, chunks: Chunks, initial: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, heads, 3, d], initial [n, heads, d, d] -> out [T, heads, d] in x's dtype and the final states."""
    size, count = chunks.size, len(chunks.filled)
    s = slopes[:, None]  # [heads, 1]
    padded = x.new_zeros(count * size, *x.shape[1:]).index_copy_(0, chunks.rows, x)
    qkv = padded.unflatten(0, (count, size)).permute(3, 0, 2, 1, 4)
    q, k, v = F.silu(qkv.to(initial.dtype, memory_format=torch.contiguous_format)).unbind()  # [N, heads, C, d]

    at = torch.arange(size, device=x.device)
    ages = at[:, None] - at
    decay = torch.exp(-slopes[:, None, None] * ages.clamp(min=0)).tril()  # [heads, C, C]
    out = (q @ k.mT * decay) @ v

    # Rows beyond a chunk's tokens hold k = 0; their clamped decay only has to be finite.
    left = (chunks.filled[:, None] - 1 - at).clamp(min=0)  # [N, C] tokens of the chunk after each token
    gains = (k * torch.exp(-s * left[:, None])[..., None]).mT @ v  # [N, heads, d, d]
    fade = torch.exp(-s * chunks.filled[:, None, None])[..., None]  # [N, heads, 1, 1]
    before, final = _scan(gains, fade, initial.index_select(0, chunks.order), chunks.active)
    out = out + (q * torch.exp(-s * (at + 1))[..., None]) @ before
    out = out.transpose(1, 2).flatten(0, 1).index_select(0, chunks.rows)
    return out.to(x.dtype), final.index_select(0, chunks.rank)


def _scan(gains: Tensor, fade: Tensor, state: Tensor, active: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """States before every chunk [N, heads, d, d], and after every sequence [n, heads, d, d], in rank order."""
    before, ended = [], []
    for gain, faded in zip(gains.split(active), fade.split(active), strict=True):
        ended.append(state[len(gain) :])
        state = state[: len(gain)]
        before.append(state)
        state = torch.addcmul(gain, state, faded)
    return torch.cat(before), torch.cat((state, *reversed(ended)))
