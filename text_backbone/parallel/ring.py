"""Ring attention over a packed batch that is shared out: sequences of any lengths, without padding.

Queries stay, keys and values go round. In step s a rank gets what it needs of the rank s before it, straight from
there, and gives the rank s after it what that one needs (`blocks`). While it attends to one block the next is under
way. Partial results are merged in float32 by the logs of their softmaxes' denominators. In the backward the keys and
values go round again; a block's gradients, summed in float32, go back to where it came from, and are added there in
float32. So a rank holds three blocks of others at most, whatever their number, and no sum is ever rounded to less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from text_backbone.kernels.softmax.partial import (
    Merged,
    block_attention,
    block_backward,
    causal_attention,
    causal_backward,
    tiles,
)
from text_backbone.packed import Packed
from text_backbone.parallel.blocks import Plan, Step, plan_attention
from text_backbone.parallel.context import ContextShard

Wait = Callable[[], None]
Flight = tuple[Step, Tensor, Wait]  # what arrives [2, n, kv_heads, d]


class Transport(Protocol):
    """How ranks exchange messages. Between any two the messages arrive in the order in which they were sent."""

    def exchange(self, send: Tensor | None, to: int, receive: Tensor | None, source: int) -> Wait:
        """Start to send a contiguous tensor, and to receive one in the place of another; either may be None.

        Both are in use, and kept, until the function that is returned has been called: it waits, on a GPU the stream
        does.
        """
        ...


class Messages:
    """Transport over a process group: NCCL on GPUs, on a stream of its own, and gloo on CPUs.

    Made by all ranks of the group together.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self.group: dist.ProcessGroup = group if group is not None else dist.group.WORLD  # type: ignore[assignment]
        # NCCL sets up with the first message, to which every rank has to come; later some have nothing to say.
        dist.all_reduce(torch.zeros(1, device=device), group=self.group)

    def exchange(self, send: Tensor | None, to: int, receive: Tensor | None, source: int) -> Wait:
        ops = []
        if send is not None:
            ops.append(dist.P2POp(dist.isend, send, group=self.group, group_peer=to))
        if receive is not None:
            ops.append(dist.P2POp(dist.irecv, receive, group=self.group, group_peer=source))
        works = dist.batch_isend_irecv(ops) if ops else []

        def wait() -> None:
            for work in works:
                work.wait()
            ops.clear()  # which kept the tensors

        return wait


def ring_attention(q: Tensor, k: Tensor, v: Tensor, shard: ContextShard, transport: Transport) -> Tensor:
    """Causal attention within each sequence of the whole batch, by all of its ranks together; differentiable.

    Args:
        q: [T, heads, d], of this rank's tokens; rotated by their `positions`.
        k: [T, kv_heads, d].
        v: as `k`.
        shard: what is here of the batch.
        transport: to the other ranks.

    Returns:
        [T, heads, d].
    """
    out: Tensor = _RingAttention.apply(q, k, v, shard, transport)
    return out


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, shard: ContextShard, transport: Transport) -> Tensor:
        out, logs = forward(q, k, v, shard, transport)
        ctx.save_for_backward(q, k, v, out, logs)
        ctx.shard, ctx.transport = shard, transport
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, logs = ctx.saved_tensors
        return (*backward(grad, q, k, v, out, logs, ctx.shard, ctx.transport), None, None)


def forward(q: Tensor, k: Tensor, v: Tensor, shard: ContextShard, transport: Transport) -> tuple[Tensor, Tensor]:
    """`ring_attention`, and the natural logs of its softmaxes' denominators [heads, T]."""
    plan = shard.memo(plan_attention)
    blocks = _blocks(k, v, plan, transport)
    out, logs = causal_attention(q, k, v, shard.memo(own_sequences))
    runs = [Merged(out[rows], logs[:, rows]) for rows in plan.seeing]
    for step, (keys, values) in blocks:
        for rows, seen in _tiles(step, q, keys):
            run, place = _place(plan, rows)
            runs[run].add(place, *block_attention(q[rows], keys[seen], values[seen]))
    for rows, merged in zip(plan.seeing, runs, strict=True):
        out[rows], logs[:, rows] = merged.result()
    return out, logs


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logs: Tensor, shard: ContextShard, transport: Transport
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from that of the output, and what `forward` gave."""
    plan = shard.memo(plan_attention)
    blocks = _blocks(k, v, plan, transport)
    dq, dk, dv = causal_backward(grad, q, k, v, out, logs, shard.memo(own_sequences))
    sums = torch.stack((dk.to(logs.dtype), dv.to(logs.dtype)))  # [2, T, kv_heads, d]
    runs = [dq[rows].to(logs.dtype) for rows in plan.seeing]
    add: Wait | None = None
    for step, block in blocks:
        theirs = torch.zeros_like(block, dtype=logs.dtype)
        for rows, seen in _tiles(step, q, block[0]):
            keys, values = block[:, seen]
            grads = block_backward(grad[rows], q[rows], keys, values, out[rows], logs[:, rows])
            run, place = _place(plan, rows)
            for total, part in zip((runs[run][place], *theirs[:, seen]), grads, strict=True):
                total += part
        if add is not None:
            add()
        add = _give_back(theirs, sums, step, transport)
    if add is not None:
        add()
    for rows, total in zip(plan.seeing, runs, strict=True):
        dq[rows] = total
    return dq.to(q.dtype), sums[0].to(k.dtype), sums[1].to(v.dtype)


def own_sequences(shard: Packed) -> Packed:
    """The rank's sequences as the first part of the plan has them: pieces of one are one."""
    assert isinstance(shard, ContextShard)
    return Packed.of(shard.memo(plan_attention).lengths, device=shard.offsets.device)


def _blocks(k: Tensor, v: Tensor, plan: Plan, transport: Transport) -> Iterator[tuple[Step, Tensor]]:
    """For each step the keys and values that arrive [2, n, kv_heads, d]; the first are under way on return."""

    def start(step: Step) -> Flight:
        send = torch.stack([torch.cat([x[rows] for rows in step.sent]) for x in (k, v)]) if step.sent else None
        receive = k.new_empty(2, step.arriving, *k.shape[1:])
        return step, receive, transport.exchange(send, step.to, receive if step.arriving else None, step.source)

    flights = map(start, plan.steps)
    return _arrivals(next(flights, None), flights)


def _arrivals(flight: Flight | None, later: Iterator[Flight]) -> Iterator[tuple[Step, Tensor]]:
    while flight is not None:
        step, block, wait = flight
        flight = next(later, None)  # under way while the block is attended to
        wait()
        yield step, block


def _give_back(theirs: Tensor, sums: Tensor, step: Step, transport: Transport) -> Wait:
    """Start to send a block's gradients to where it came from. What is returned adds those of this rank's to `sums`."""
    mine = sums.new_empty(2, sum(rows.stop - rows.start for rows in step.sent), *sums.shape[2:])
    wait = transport.exchange(theirs if step.arriving else None, step.source, mine if step.sent else None, step.to)

    def add() -> None:
        wait()
        start = 0
        for rows in step.sent:
            stop = start + rows.stop - rows.start
            sums[:, rows] += mine[:, start:stop]
            start = stop

    return add


def _tiles(step: Step, q: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows of q, and of the keys that arrive in a step, that are computed as one."""
    for product in step.products:
        for rows, seen in tiles(q[product.queries], keys[product.keys]):
            yield _within(product.queries, rows), _within(product.keys, seen)


def _within(outer: slice, inner: slice) -> slice:
    return slice(outer.start + inner.start, outer.start + inner.stop)


def _place(plan: Plan, rows: slice) -> tuple[int, slice]:
    """Which of the plan's `seeing` runs the rows are of, and where in it."""
    for i, run in enumerate(plan.seeing):
        if run.start <= rows.start < run.stop:
            return i, slice(rows.start - run.start, rows.stop - run.start)
    raise AssertionError(rows)
