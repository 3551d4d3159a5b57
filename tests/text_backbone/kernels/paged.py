"""New tokens beside a filled cache of pages, and what attention to both is in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from text_backbone import Packed

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 3e-3}


@dataclass
class Case:
    """New tokens and a filled cache, in the dtype under test; unused rows of the pages are NaN."""

    packed: Packed
    q: Tensor
    k: Tensor
    v: Tensor
    keys: Tensor
    values: Tensor
    table: Tensor

    def want(self) -> Tensor:
        """In float64, sequence by sequence."""
        outs = []
        for i, (start, length, past) in enumerate(
            zip(self.packed.starts, self.packed.lengths, self.packed.pasts, strict=True)
        ):
            slot = self.packed.slot_ids[i]
            pages = self.table[slot, : -(-(past + length) // self.keys.shape[1])]
            k, v = (x[pages.long()].flatten(0, 1)[: past + length].double() for x in (self.keys, self.values))
            outs.append(exact(self.q[start : start + length], k, v, past))
        return torch.cat(outs)


def exact(q: Tensor, k: Tensor, v: Tensor, past: int) -> Tensor:
    """float64 [L, heads, d]: q [L, heads, d] at positions past ..., k and v float64 [past + L, kv_heads, d]."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1).transpose(0, 1) for x in (k, v))  # [heads, S, d]
    parts = []
    step = max(1, 2**22 // k.shape[1])
    for start in range(0, len(q), step):
        rows = q[start : start + step].transpose(0, 1).double()
        scores = rows @ k.transpose(1, 2) * q.shape[2] ** -0.5
        seen = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).tril(past + start)
        parts.append((scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(parts)


def make(lengths: list[int], past: list[int], heads: tuple[int, int, int], page_size: int, dtype: torch.dtype) -> Case:
    """`heads`: query heads, key/value heads, d. Slots and pages are shuffled."""
    generator = torch.Generator().manual_seed(sum(lengths) + sum(past))
    n, (query_heads, kv_heads, d) = len(lengths), heads
    slots = torch.randperm(n + 2, generator=generator)[:n].tolist()
    needed = [-(-(a + b) // page_size) for a, b in zip(lengths, past, strict=True)]
    order = torch.randperm(sum(needed) + 3, generator=generator).to(torch.int32)
    table = torch.full((n + 2, len(order)), -(2**30), dtype=torch.int32)  # a page that must not be looked up
    on_device = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=on_device, device=DEVICE).to(dtype)

    keys, values = torch.full((2, len(order), page_size, kv_heads, d), float("nan"), dtype=dtype, device=DEVICE)
    q, k, v = draw(sum(lengths), query_heads, d), draw(sum(lengths), kv_heads, d), draw(sum(lengths), kv_heads, d)
    start = 0
    for slot, length, before, pages in zip(slots, lengths, past, order[: sum(needed)].split(needed), strict=True):
        table[slot, : len(pages)] = pages
        at = torch.arange(before + length)
        rows = (pages[at // page_size].long() * page_size + at % page_size).to(DEVICE)
        for pool, new in ((keys, k), (values, v)):
            filled = torch.cat((draw(before, kv_heads, d), new[start : start + length]))
            pool.view(-1, kv_heads, d)[rows] = filled
        start += length
    packed = Packed.of(lengths, past=past, slots=slots, device=DEVICE)
    return Case(packed, q, k, v, keys, values, table.to(DEVICE))


def assert_near(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    error = (got.double() - want).norm() / want.norm()
    assert error <= TOLERANCE[got.dtype], float(error)
