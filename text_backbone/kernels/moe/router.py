"""The router in Triton: logits, the largest k, their softmax, and the gradients."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from text_backbone.kernels.moe.reduce import sum_partials
from text_backbone.kernels.overlap import early, wait

_PROGRAMS = 264  # two for each of an H200's 132 multiprocessors


@triton.jit
def _choose(
    logits, token, live, weights, experts, E: tl.constexpr, EP: tl.constexpr, TOP_K: tl.constexpr, KP: tl.constexpr
):
    """Store the largest TOP_K of `logits` [BT, EP] (padding at -inf): their softmax and their indices.

    The softmax over the chosen logits equals the softmax over all of them, renormalised on the chosen.
    """
    bins = tl.arange(0, EP)
    slots = tl.arange(0, KP)
    kept = tl.full([logits.shape[0], KP], float("-inf"), tl.float32)
    for j in tl.static_range(TOP_K):
        value, best = tl.max(logits, 1, return_indices=True)
        best = tl.minimum(best, E - 1)  # with NaN logits the padding may win; the index has to stay in bounds
        kept = tl.where(slots[None, :] == j, value[:, None], kept)
        logits = tl.where(bins[None, :] == best[:, None], float("-inf"), logits)
        tl.store(experts + token * TOP_K + j, best.to(tl.int64), mask=live)
    share = tl.exp(kept - tl.max(kept, 1)[:, None])
    share = share / tl.sum(share, 1)[:, None]
    tl.store(weights + token[:, None] * TOP_K + slots[None, :], share, mask=live[:, None] & (slots < TOP_K)[None, :])


@triton.jit(do_not_specialize=["tokens"])
def _route_kernel(
    x, gate, logits, weights, experts, tokens,
    HIDDEN: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, TOP_K: tl.constexpr, KP: tl.constexpr,
    SPAN: tl.constexpr, BT: tl.constexpr, BH: tl.constexpr, WIDE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Logits of BT tokens over SPAN of the hidden units. A program that sees all units also chooses the experts."""
    wait(EARLY)
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    live = token < tokens
    bins = tl.arange(0, EP)
    begin = tl.program_id(1) * SPAN
    total = tl.zeros([BT, EP], tl.float32)
    for h in range(0, SPAN, BH):
        unit = begin + h + tl.arange(0, BH)
        inside = unit < HIDDEN
        rows = tl.load(x + token[:, None] * HIDDEN + unit[None, :], mask=live[:, None] & inside[None, :], other=0.0)
        columns = tl.load(
            gate + bins[None, :] * HIDDEN + unit[:, None], mask=(bins < E)[None, :] & inside[:, None], other=0.0
        )
        if WIDE:
            rows, columns = rows.to(tl.float32), columns.to(tl.float32)
        total = tl.dot(rows, columns, total, input_precision="ieee")
    out = tl.program_id(1) * tl.cast(tokens, tl.int64) + token
    tl.store(logits + out[:, None] * E + bins[None, :], total, mask=live[:, None] & (bins < E)[None, :])
    if SPAN >= HIDDEN:
        total = tl.where((bins < E)[None, :], total, float("-inf"))
        _choose(total, token, live, weights, experts, E, EP, TOP_K, KP)


@triton.jit(do_not_specialize=["tokens"])
def _choose_kernel(
    partial, logits, weights, experts, tokens,
    E: tl.constexpr, EP: tl.constexpr, TOP_K: tl.constexpr, KP: tl.constexpr, SPLITS: tl.constexpr, BT: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Sum the logits over SPLITS parts, then choose."""
    wait(EARLY)
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    live = token < tokens
    bins = tl.arange(0, EP)
    inside = live[:, None] & (bins < E)[None, :]
    part = tl.arange(0, SPLITS).to(tl.int64) * tokens
    index = (part[:, None, None] + token[None, :, None]) * E + bins[None, None, :]
    total = tl.sum(tl.load(partial + index, mask=inside[None, :, :], other=0.0), 0)
    tl.store(logits + token[:, None] * E + bins[None, :], total, mask=inside)
    total = tl.where((bins < E)[None, :], total, float("-inf"))
    _choose(total, token, live, weights, experts, E, EP, TOP_K, KP)


@triton.jit
def _dlogits(
    weights, experts, dweights, dlogits, token, live,
    E: tl.constexpr, EP: tl.constexpr, TOP_K: tl.constexpr, HAS_DW: tl.constexpr, HAS_DL: tl.constexpr,
):  # fmt: skip
    """Gradient [BT, EP] at the logits: what arrived there, plus the softmax's over the chosen."""
    bins = tl.arange(0, EP)
    total = tl.zeros([token.shape[0], EP], tl.float32)
    if HAS_DL:
        inside = live[:, None] & (bins < E)[None, :]
        total += tl.load(dlogits + token[:, None] * E + bins[None, :], mask=inside, other=0.0)
    if HAS_DW:
        mean = tl.zeros([token.shape[0]], tl.float32)
        for j in tl.static_range(TOP_K):
            weight = tl.load(weights + token * TOP_K + j, mask=live, other=0.0)
            mean += weight * tl.load(dweights + token * TOP_K + j, mask=live, other=0.0)
        for j in tl.static_range(TOP_K):
            weight = tl.load(weights + token * TOP_K + j, mask=live, other=0.0)
            grad = weight * (tl.load(dweights + token * TOP_K + j, mask=live, other=0.0) - mean)
            expert = tl.load(experts + token * TOP_K + j, mask=live, other=0)
            total += tl.where(bins[None, :] == expert[:, None], grad[:, None], 0.0)
    return total


@triton.jit(do_not_specialize=["tokens"])
def _route_backward_kernel(
    x, gate, weights, experts, dweights, dlogits, dx, partial, tokens,
    HIDDEN: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, TOP_K: tl.constexpr, BT: tl.constexpr, BH: tl.constexpr,
    HAS_DW: tl.constexpr, HAS_DL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dx for every token block of this program, and this program's part of dgate, over BH hidden units.

    bfloat16 inputs go through tensor cores: the float32 gradient as the sum of two bfloat16 numbers (16 bits of
    mantissa), the other factor exactly.
    """
    bins = tl.arange(0, EP)
    unit = tl.program_id(1) * BH + tl.arange(0, BH)
    kept = (bins < E)[:, None] & (unit < HIDDEN)[None, :]
    router = tl.load(gate + bins[:, None] * HIDDEN + unit[None, :], mask=kept, other=0.0)  # [EP, BH]
    dgate = tl.zeros([EP, BH], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(tokens, BT), tl.num_programs(0)):
        token = block * BT + tl.arange(0, BT).to(tl.int64)
        live = token < tokens
        grad = _dlogits(weights, experts, dweights, dlogits, token, live, E, EP, TOP_K, HAS_DW, HAS_DL)
        inside = live[:, None] & (unit < HIDDEN)[None, :]
        at = token[:, None] * HIDDEN + unit[None, :]
        rows = tl.load(x + at, mask=inside, other=0.0)
        if WIDE:
            back = tl.dot(grad, router.to(tl.float32), input_precision="ieee")
            dgate = tl.dot(tl.trans(grad), rows.to(tl.float32), dgate, input_precision="ieee")
        else:
            high = grad.to(tl.bfloat16)
            low = (grad - high.to(tl.float32)).to(tl.bfloat16)
            back = tl.dot(high, router, tl.dot(low, router))
            dgate = tl.dot(tl.trans(low), rows, dgate)
            dgate = tl.dot(tl.trans(high), rows, dgate)
        tl.store(dx + at, back.to(dx.dtype.element_ty), mask=inside)
    out = tl.program_id(0).to(tl.int64) * E + bins
    tl.store(partial + out[:, None] * HIDDEN + unit[None, :], dgate, mask=kept)


def route_forward(x: Tensor, gate: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Same as `reference.route`, without gradient."""
    tokens, hidden = x.shape
    count = len(gate)
    logits = x.new_empty(tokens, count, dtype=torch.float32)
    weights = x.new_empty(tokens, top_k, dtype=torch.float32)
    experts = x.new_empty(tokens, top_k, dtype=torch.int64)
    if not tokens:
        return weights, experts, logits
    x, gate = x.contiguous(), gate.contiguous()
    padded, slots = max(16, triton.next_power_of_2(count)), triton.next_power_of_2(top_k)
    rows = 64 if tokens > 256 and padded <= 64 else 16
    blocks = triton.cdiv(tokens, rows)
    # A power of two, so that few variants are compiled. One wave of programs at most, 256 units each at least.
    splits = 1 << max(0, min(_PROGRAMS // blocks, hidden // 256).bit_length() - 1)
    depth = max(16, min(64, 4096 // padded))
    span = triton.cdiv(hidden, splits * depth) * depth
    partial = logits if splits == 1 else x.new_empty(splits, tokens, count, dtype=torch.float32)
    _route_kernel[blocks, splits](
        x, gate, partial, weights, experts, tokens, hidden, count, padded, top_k, slots,
        span, rows, depth, x.dtype != gate.dtype or x.dtype == torch.float32, num_warps=4, num_stages=3,
        **early(x.device),
    )  # fmt: skip
    if splits > 1:
        some = max(1, 4096 // (splits * padded))
        _choose_kernel[(triton.cdiv(tokens, some),)](
            partial, logits, weights, experts, tokens, count, padded, top_k, slots, splits, some, **early(x.device)
        )
    return weights, experts, logits


class Route(torch.autograd.Function):
    """`reference.route` with gradients for x and gate; the gradients of weights and logits may each be absent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
        weights, experts, logits = route_forward(x, gate, top_k)
        ctx.save_for_backward(x, gate, weights, experts)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(experts)
        return weights, experts, logits

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dweights: Tensor | None, _: None, dlogits: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None]:
        x, gate, weights, experts = ctx.saved_tensors
        x, gate = x.contiguous(), gate.contiguous()
        (tokens, hidden), count = x.shape, len(gate)
        if not tokens or (dweights is None and dlogits is None):
            return torch.zeros_like(x), torch.zeros_like(gate), None
        dweights = None if dweights is None else dweights.contiguous()
        dlogits = None if dlogits is None else dlogits.contiguous()
        padded, wide = max(16, triton.next_power_of_2(count)), x.dtype != torch.bfloat16 or gate.dtype != torch.bfloat16
        # What a thread holds in registers bounds both blocks; products in float32 need more of them.
        rows = 16 if wide else max(16, min(64, 4096 // padded))
        units = max(16, min(64 if wide else 128, 8192 // padded, triton.next_power_of_2(hidden)))
        across = triton.cdiv(hidden, units)
        programs = min(triton.cdiv(tokens, rows), max(1, _PROGRAMS // across))
        dx, dgate = torch.empty_like(x), torch.empty_like(gate)
        partial = x.new_empty(programs, count, hidden, dtype=torch.float32)
        _route_backward_kernel[programs, across](
            x, gate, weights, experts, dweights, dlogits, dx, partial, tokens,
            hidden, count, padded, weights.shape[1], rows, units,
            dweights is not None, dlogits is not None, wide, num_warps=4, num_stages=2,
        )  # fmt: skip
        sum_partials(partial, dgate)
        return dx, dgate, None
