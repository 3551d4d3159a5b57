"""Sort a batch's assignments (token, expert) by expert: a stable counting sort, deterministic, on the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from text_backbone.kernels.overlap import early, wait

_PROGRAMS = 128
_CELLS = 4096  # cells of a [rows, experts] block: 32 registers of a thread in four warps
_ONE_PROGRAM = 1024  # assignments up to which one program is faster than two launches


class Groups(NamedTuple):
    """Assignment `token * top_k + j` is row `place[assignment]` of the sorted rows, and row r is `order[r]`.

    `bounds` int32 [E + 1]: expert e has rows bounds[e] to bounds[e + 1]. order and place: int32 [tokens * top_k].
    """

    order: Tensor
    place: Tensor
    bounds: Tensor


@triton.jit
def _one_hot(experts, at, last, EP: tl.constexpr):
    chosen = tl.load(experts + at, mask=at < last, other=-1).to(tl.int32)
    return (chosen[:, None] == tl.arange(0, EP)[None, :]).to(tl.int32)


@triton.jit(do_not_specialize=["assignments", "chunk"])
def _count_kernel(experts, counts, assignments, chunk, EP: tl.constexpr, ROWS: tl.constexpr, EARLY: tl.constexpr):
    """counts[program, e]: how many of the program's `chunk` assignments go to expert e."""
    wait(EARLY)
    first = tl.program_id(0) * chunk
    last = tl.minimum(first + chunk, assignments)
    total = tl.zeros([EP], tl.int32)
    for begin in range(first, last, ROWS):
        total += tl.sum(_one_hot(experts, begin + tl.arange(0, ROWS), last, EP), 0)
    tl.store(counts + tl.program_id(0) * EP + tl.arange(0, EP), total)


@triton.jit(do_not_specialize=["assignments", "chunk", "programs"])
def _place_kernel(
    experts, counts, order, place, bounds, assignments, chunk, programs,
    E: tl.constexpr, EP: tl.constexpr, ROWS: tl.constexpr, ALONE: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Give every assignment of the program's chunk its row: expert's first row + those before it at that expert."""
    wait(EARLY)
    bins = tl.arange(0, EP)
    first = tl.program_id(0) * chunk
    last = tl.minimum(first + chunk, assignments)
    total = tl.zeros([EP], tl.int32)  # over all programs
    earlier = tl.zeros([EP], tl.int32)  # over the programs before this one
    if ALONE:
        for begin in range(first, last, ROWS):
            total += tl.sum(_one_hot(experts, begin + tl.arange(0, ROWS), last, EP), 0)
    else:
        for begin in range(0, programs, ROWS):
            program = begin + tl.arange(0, ROWS)
            part = tl.load(counts + program[:, None] * EP + bins[None, :], mask=(program < programs)[:, None], other=0)
            total += tl.sum(part, 0)
            earlier += tl.sum(tl.where((program < tl.program_id(0))[:, None], part, 0), 0)
    ends = tl.cumsum(total, 0)
    if tl.program_id(0) == 0:
        tl.store(bounds + bins, ends - total, mask=bins < E)
        tl.store(bounds + E, assignments)
    row = ends - total + earlier  # the next free row of each expert
    for begin in range(first, last, ROWS):
        at = begin + tl.arange(0, ROWS)
        hot = _one_hot(experts, at, last, EP)
        rank = tl.cumsum(hot, 0) - hot
        target = tl.sum(hot * (rank + row[None, :]), 1)
        tl.store(place + at, target, mask=at < last)
        tl.store(order + target, at, mask=at < last)
        row += tl.sum(hot, 0)


def group(experts: Tensor, count: int) -> Groups:
    """Sort `experts` int64 [T, k], values in [0, count), stably. T * k must be below 2^31."""
    experts = experts.contiguous()
    assignments = experts.numel()
    order = experts.new_empty(assignments, dtype=torch.int32)
    place, bounds = torch.empty_like(order), order.new_empty(count + 1)
    padded = max(2, triton.next_power_of_2(count))
    rows = max(16, _CELLS // padded)
    alone = assignments <= _ONE_PROGRAM
    chunk = assignments if alone else triton.cdiv(triton.cdiv(assignments, _PROGRAMS), rows) * rows
    programs = triton.cdiv(assignments, chunk)
    options = early(experts.device)
    counts = order if alone else order.new_empty(programs, padded)
    if not alone:
        _count_kernel[(programs,)](experts, counts, assignments, chunk, padded, rows, **options)
    _place_kernel[(programs,)](
        experts, counts, order, place, bounds, assignments, chunk, programs, count, padded, rows, alone, **options
    )
    return Groups(order, place, bounds)
