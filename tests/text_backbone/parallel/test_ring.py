"""Ring attention against the whole batch on one rank. Ranks are threads here, and processes in the tests of models."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from text_backbone import Packed
from text_backbone.kernels.softmax import reference
from text_backbone.parallel import ring
from text_backbone.parallel.context import ContextShard

HEADS, KV_HEADS, D = 4, 2, 8


class Post:
    """Messages between threads. Nothing is received before it is waited for, as late as can be."""

    def __init__(self) -> None:
        self.arrived = threading.Condition()
        self.boxes: dict[tuple[int, int], deque[Tensor]] = {}
        self.sent: list[tuple[int, int, Tensor]] = []
        self.failed = False

    def put(self, source: int, to: int, message: Tensor) -> None:
        with self.arrived:
            self.boxes.setdefault((source, to), deque()).append(message)
            self.sent.append((source, to, message))
            self.arrived.notify_all()

    def take(self, source: int, to: int) -> Tensor:
        with self.arrived:
            assert self.arrived.wait_for(lambda: self.failed or self.boxes.get((source, to)), 200), (source, to)
            assert not self.failed
            return self.boxes[source, to].popleft()

    def run(self, work: Callable[[int], Any], ranks: int) -> list[Any]:
        def as_rank(rank: int) -> Any:
            try:
                return work(rank)
            except BaseException:
                with self.arrived:
                    self.failed = True
                    self.arrived.notify_all()
                raise

        with ThreadPoolExecutor(ranks) as pool:
            found = list(pool.map(as_rank, range(ranks)))
        assert not any(self.boxes.values())
        return found


@dataclass
class Thread:
    """A `ring.Transport` of one rank."""

    post: Post
    rank: int

    def exchange(self, send: Tensor | None, to: int, receive: Tensor | None, source: int) -> ring.Wait:
        if send is not None:
            assert send.is_contiguous()
            self.post.put(self.rank, to, send.clone())
            send.fill_(torch.nan)  # it is not to be read again
        if receive is not None:
            receive.fill_(torch.nan)

        def wait() -> None:
            if receive is not None:
                receive.copy_(self.post.take(source, self.rank))

        return wait


@dataclass
class Batch:
    """Queries, keys, values and the gradient of the output, of all tokens."""

    lengths: Sequence[int]
    inputs: tuple[Tensor, Tensor, Tensor]
    grad: Tensor

    @classmethod
    def draw(
        cls,
        lengths: Sequence[int],
        dtype: torch.dtype,
        sizes: tuple[int, int, int] = (HEADS, KV_HEADS, D),
        device: torch.device | None = None,
    ) -> Batch:
        generator = torch.Generator(device or "cpu").manual_seed(sum(lengths))
        heads, kv_heads, d = sizes

        def some(heads: int) -> Tensor:
            shape = sum(lengths), heads, d
            return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

        return cls(lengths, (2 * some(heads), some(kv_heads), some(kv_heads)), some(heads))

    def want(self) -> list[Tensor]:
        """The output and the gradients in float64, one head after the other."""
        q, k, v, grad = (x.double() for x in (*self.inputs, self.grad))
        group, packed = q.shape[1] // k.shape[1], Packed.of(self.lengths)
        found = [torch.zeros_like(x) for x in (q, q, k, v)]
        for i in range(q.shape[1]):
            own, seen = slice(i, i + 1), slice(i // group, i // group + 1)
            inputs = [x.clone().requires_grad_() for x in (q[:, own], k[:, seen], v[:, seen])]
            out = reference.softmax_attention(*inputs, packed)
            parts = out.detach(), *torch.autograd.grad(out, inputs, grad[:, own])
            for whole, part, heads in zip(found, parts, (own, own, seen, seen), strict=True):
                whole[:, heads] += part
        return found

    def on(self, ranks: int, post: Post) -> list[Tensor]:
        """The same by so many ranks, put together."""
        shards = [ContextShard.share(self.lengths, rank, ranks) for rank in range(ranks)]

        def work(rank: int) -> list[Tensor]:
            q, k, v = (shards[rank].take(x).requires_grad_() for x in self.inputs)
            out = ring.ring_attention(q, k, v, shards[rank], Thread(post, rank))
            return [out.detach(), *torch.autograd.grad(out, (q, k, v), shards[rank].take(self.grad))]

        rows = torch.cat([shard.rows for shard in shards])
        parts = zip(*post.run(work, ranks), strict=True)
        return [torch.empty_like(torch.cat(part)).index_copy_(0, rows, torch.cat(part)) for part in parts]


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


batches = st.tuples(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 4)).filter(
    lambda batch: sum(batch[0]) >= 2 * batch[1]
)


@settings(deadline=None, max_examples=40)
@given(batches)
@example(([100], 4))
@example(([8, 8, 8, 8], 2))
@example(([1] * 8, 4))
@example(([3, 1, 1, 60, 2, 14], 3))
def test_ranks_compute_what_one_does(batch: tuple[list[int], int]) -> None:
    lengths, ranks = batch
    drawn = Batch.draw(lengths, torch.float64)
    for got, want in zip(drawn.on(ranks, Post()), drawn.want(), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("lengths", [[700], [5, 300, 1, 90, 64, 40], [32] * 16, [17] * 30], ids=str)
@pytest.mark.parametrize("ranks", [2, 4])
def test_float32(lengths: list[int], ranks: int) -> None:
    drawn = Batch.draw(lengths, torch.float32)
    for got, want in zip(drawn.on(ranks, Post()), drawn.want(), strict=True):
        assert got.dtype == torch.float32
        assert relative(got, want) < 1e-6


def test_many_ranks_are_as_exact_as_few_in_bfloat16() -> None:
    """Parts are rounded, and their float32 sum once more: 1.4 times the error, of however many. Rounded sums drift."""
    drawn = Batch.draw([800], torch.bfloat16)
    post = Post()
    for few, many, want in zip(drawn.on(1, Post()), drawn.on(8, post), drawn.want(), strict=True):
        assert few.dtype == many.dtype == torch.bfloat16
        assert relative(many, want) < 1.5 * relative(few, want) < 6e-3
    assert {message.dtype for _, _, message in post.sent} == {torch.bfloat16, torch.float32}


def test_messages_are_of_what_is_needed() -> None:
    """Keys of one sequence go forward, twice, and their gradients back; where no sequence crosses ranks, nothing."""
    post = Post()
    Batch.draw([8] * 8, torch.float32).on(4, post)
    assert post.sent == []
    Batch.draw([4, 4, 5, 3, 4, 4], torch.float32).on(3, post)
    assert [message.shape for _, _, message in post.sent] == 3 * [(2, 4, KV_HEADS, D)]
    ((source, to, _), again, back) = post.sent
    assert (again[:2], back[:2]) == ((source, to), (to, source))


def test_the_next_block_is_under_way_while_one_is_attended_to() -> None:
    drawn, post = Batch.draw([160], torch.float32), Post()
    shards = [ContextShard.share(drawn.lengths, rank, 4) for rank in range(4)]
    told: list[str] = []

    class Telling(Thread):
        def exchange(self, send: Tensor | None, to: int, receive: Tensor | None, source: int) -> ring.Wait:
            told.append(f"start {source}")
            wait = super().exchange(send, to, receive, source)

            def waited() -> None:
                wait()
                told.append(f"got {source}")

            return waited

    def work(rank: int) -> None:
        transport = (Telling if rank == 1 else Thread)(post, rank)
        q, k, v = map(shards[rank].take, drawn.inputs)
        out, logs = ring.forward(q, k, v, shards[rank], transport)
        if rank == 1:
            told.append("backward")
        ring.backward(shards[rank].take(drawn.grad), q, k, v, out, logs, shards[rank], transport)

    post.run(work, 4)
    # Gradients of a block go back once it is computed; those of this rank's keys are added when the next block is.
    keys = ["start 0", "start 3", "got 0", "start 2", "got 3", "got 2"]
    back = ["start 2", "got 2", "start 3", "got 3", "start 0", "got 0"]
    assert told == [*keys, "backward", *keys[:3], back[0], *keys[3:5], *back[1:3], keys[5], *back[3:]]


def test_a_rank_that_does_not_differentiate() -> None:
    """Inference: no gradients are kept, and the output is the same."""
    drawn, post = Batch.draw([50, 30], torch.float32), Post()
    shards = [ContextShard.share(drawn.lengths, rank, 2) for rank in range(2)]

    def work(rank: int) -> Tensor:
        with torch.inference_mode():
            return ring.ring_attention(*map(shards[rank].take, drawn.inputs), shards[rank], Thread(post, rank))

    want = drawn.want()[0]
    for shard, out in zip(shards, post.run(work, 2), strict=True):
        assert not out.requires_grad
        assert relative(out, shard.take(want)) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("lengths", [[16384], [13, 9000, 1, 700, 64, 5000, 1606]], ids=str)
def test_ranks_on_one_gpu(lengths: list[int], ranks: int) -> None:
    """The released model's heads in bfloat16: chunks long enough for cuDNN, and whatever else is left to them.

    Without autograd, whose one thread for a GPU cannot be several ranks.
    """
    device, post = torch.device("cuda"), Post()
    drawn = Batch.draw(lengths, torch.bfloat16, (64, 8, 128), device)
    shards = [ContextShard.share(lengths, rank, ranks, device=device) for rank in range(ranks)]

    def work(rank: int) -> list[Tensor]:
        shard, thread = shards[rank], Thread(post, rank)
        q, k, v = map(shard.take, drawn.inputs)
        out, logs = ring.forward(q, k, v, shard, thread)
        return [out, *ring.backward(shard.take(drawn.grad), q, k, v, out, logs, shard, thread)]

    rows = torch.cat([shard.rows for shard in shards])
    parts = [torch.cat(part) for part in zip(*post.run(work, ranks), strict=True)]
    for part, want in zip(parts, drawn.want(), strict=True):
        assert relative(part, want[rows]) < 8e-3


RAGGED = [41000, 300, 23011, 17, 16384, 12001, 9005, 800, 7003, 5200, 4100, 64, 3333, 2900, 1777, 1024, 900, 700, 1553]
SHORT = [500 + i * 37 % 1500 for i in range(100)]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_two_gpus_share_the_work(run_ranks: Any, tmp_path: Any) -> None:
    """At least 80% of twice as fast forward, and 82% with the backward. `pytest -m gpu -s` shows how fast."""
    batches = {"one sequence": [131072], "ragged": RAGGED, "short sequences": SHORT}
    cases = {
        name: {"lengths": lengths, "sizes": (64, 8, 128), "dtype": torch.bfloat16} for name, lengths in batches.items()
    }
    found, _ = run_ranks(2, cases, tmp_path, "cuda", worker="ring_worker")
    for name, took in found.items():
        forward, whole = took["forward"], took["whole forward"]
        both, whole_both = forward + took["backward"], whole + took["whole backward"]
        print(
            f"{name} of {sum(batches[name])} tokens: {1e3 * whole:.2f} + {1e3 * (whole_both - whole):.2f} ms on one, "
            f"{1e3 * forward:.2f} + {1e3 * (both - forward):.2f} on two, "
            f"{whole / 2 / forward:.1%} of ideal forward and {whole_both / 2 / both:.1%} with the backward"
        )
        assert whole / 2 / forward > 0.8, name
        assert whole_both / 2 / both > 0.82, name
