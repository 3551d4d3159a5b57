"""LASP+ against the whole batch in one piece. Ranks are threads here; processes are in `test_context_parallel.py`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from text_backbone import Packed
from text_backbone.kernels.lightning import reference
from text_backbone.parallel import lasp
from text_backbone.parallel.context import ContextShard

HEADS, D = 2, 4
SLOPES = torch.tensor([0.0, 0.31])


class Threads:
    """An `all_gather` of threads, each of which says which rank it is."""

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks)
        self.given: dict[int, Tensor] = {}
        self.messages = 0
        self.me = threading.local()

    def all_gather(self, x: Tensor, group: object) -> Tensor:
        self.given[self.me.rank] = x
        self.messages += 1
        self.barrier.wait(200)
        every = torch.stack([self.given[rank] for rank in range(self.barrier.parties)])
        self.barrier.wait(200)
        return every

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        def as_rank(rank: int) -> Any:
            self.me.rank = rank
            try:
                return work(rank)
            except BaseException:
                self.barrier.abort()
                raise

        with ThreadPoolExecutor(self.barrier.parties) as pool:
            return list(pool.map(as_rank, range(self.barrier.parties)))


batches = st.tuples(st.lists(st.integers(1, 150), min_size=1, max_size=5), st.integers(1, 4)).filter(
    lambda batch: sum(batch[0]) >= 2 * batch[1]
)


@settings(deadline=None, max_examples=25)
@given(batches)
@example(([400], 4))
@example(([2] * 6, 2))
@example(([1, 300, 3, 1, 90], 3))
def test_ranks_compute_what_one_does(batch: tuple[list[int], int]) -> None:
    lengths, ranks = batch
    tokens = sum(lengths)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(tokens, HEADS * 3 * D, generator=generator, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(tokens, HEADS * D, generator=generator, dtype=torch.float64)
    want = reference.lightning_attention(qkv, SLOPES, Packed.of(lengths))
    (by_qkv,) = torch.autograd.grad(want, qkv, grad)
    threads = Threads(ranks)
    shards = [ContextShard.share(lengths, rank, ranks) for rank in range(ranks)]

    def work(rank: int) -> tuple[Tensor, Tensor]:
        own = shards[rank].take(qkv.detach()).requires_grad_()
        out = lasp.lasp_attention(own, SLOPES, shards[rank], None)  # type: ignore[arg-type]
        return out.detach(), torch.autograd.grad(out, own, shards[rank].take(grad))[0]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lasp, "all_gather", threads.all_gather)
        for shard, (out, back) in zip(shards, threads.run(work), strict=True):
            torch.testing.assert_close(out, shard.take(want.detach()))
            torch.testing.assert_close(back, shard.take(by_qkv))
    crossed = any(chunk.pieces[-1].leaves for chunk in shards[0].chunks)
    assert threads.messages == 2 * ranks * crossed  # one forward and one backward from each, whatever the batch
