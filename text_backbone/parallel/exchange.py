"""Rows that ranks give each other, with gradients: every step is a linear map, and its gradient the map's transpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

Map = Callable[[Tensor], Tensor]
Tensors = tuple[Tensor, ...]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Map, back: Map) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(grad.contiguous()), None, None


def linear_map(x: Tensor, there: Map, back: Map) -> Tensor:
    """`there(x)`, whose gradient is `back` of the result's: the transpose of `there`. Nothing is kept for it.

    If ranks talk in `back`, x has to need a gradient on all of them, or on none.
    """
    return _Linear.apply(x, there, back)


def exchange(x: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """All-to-all of x [n, ...]: the next `send[r]` rows go to each rank r, and `receive[r]` come from it, in order."""
    if len(send) == 1:
        return x

    def swap(rows: Tensor, outgoing: Sequence[int], incoming: Sequence[int]) -> Tensor:
        out = rows.new_empty(sum(incoming), *rows.shape[1:])
        dist.all_to_all_single(out, rows.contiguous(), list(incoming), list(outgoing), group=group)
        return out

    return linear_map(x, lambda rows: swap(rows, send, receive), lambda grad: swap(grad, receive, send))


def collect(x: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Every rank's rows, in ranks' order, on each: x [sizes[rank], ...] -> [sum(sizes), ...]."""
    if len(sizes) == 1:
        return x
    return linear_map(x, lambda rows: _collected(rows, sizes, group), lambda grad: _summed(grad, sizes, group))


def reduce(x: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """The sum over ranks, made in float32, of this rank's rows: x [sum(sizes), ...] -> [sizes[rank], ...]."""
    if len(sizes) == 1:
        return x
    return linear_map(x, lambda rows: _summed(rows, sizes, group), lambda grad: _collected(grad, sizes, group))


def take_share(x: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """This rank's rows of x [sum(sizes), ...], which all ranks have, and all get the gradient of."""
    rank = dist.get_rank(group)
    return linear_map(
        x, lambda rows: rows.split(list(sizes))[rank].clone(), lambda grad: _collected(grad, sizes, group)
    )


def rejoin(x: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """All ranks' rows, on each, of what each has for its own: of `take_share` the transpose."""
    rank = dist.get_rank(group)
    return linear_map(x, lambda rows: _collected(rows, sizes, group), lambda grad: grad.split(list(sizes))[rank])


def all_reduce(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over ranks, in memory of its own. It has no gradient: that depends on what the ranks do with it."""
    out = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(out, group=group)
    return out


# Rows differ in number from rank to rank, for which gloo has nothing but this, and NCCL nothing better.


def _collected(rows: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    ranks = len(sizes)
    out = rows.new_empty(sum(sizes), *rows.shape[1:])
    dist.all_to_all_single(out, torch.cat([rows] * ranks), list(sizes), [len(rows)] * ranks, group=group)
    return out


def _summed(rows: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    own = sizes[dist.get_rank(group)]
    out = rows.new_empty(len(sizes) * own, *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), [own] * len(sizes), list(sizes), group=group)
    return sum_of(out.unflatten(0, (len(sizes), own)), 0)


def sum_of(x: Tensor, dim: int) -> Tensor:
    """The sum over a dimension, made in float32 at least, in x's dtype."""
    return x.sum(dim, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)


class Lane:
    """Where a layer's messages run: on a GPU a stream of their own, so that work goes on while they are under way.

    The gradient of what ran in a lane runs there too, and waits for what it needs and nothing else: so does autograd
    treat streams.
    """

    def __init__(self, device: torch.device) -> None:
        # Of high priority, or the thousands of blocks of a matrix product would all start before a message's few.
        self.stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    def run(self, work: Callable[..., Tensors], *inputs: Tensor) -> Callable[[], Tensors]:
        """Start `work(*inputs)`, of tensors that the current stream makes; what this returns waits for its result."""
        if self.stream is None:
            result = work(*inputs)
            return lambda: result
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            result = work(*inputs)
            done = self.stream.record_event()
        for tensor in inputs:
            tensor.record_stream(self.stream)

        def wait() -> Tensors:
            here = torch.cuda.current_stream(done.device)
            here.wait_event(done)
            for tensor in result:
                tensor.record_stream(here)
            return result

        return wait
