"""Sequences whose pages are shared out over ranks, against a cache that has them all. Ranks are threads here."""

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

from text_backbone import HybridCache, MiniMaxText, Packed, TextConfig
from text_backbone.parallel import ShardedCache, pages

PAGE, SLOTS = 4, 4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Feed = Callable[..., list[Tensor]]


class Meeting:
    """Where threads exchange what each brings."""

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks)
        self.brought: list[Any] = [None] * ranks
        self.messages = 0

    def exchange(self, rank: int, x: Tensor) -> list[Tensor]:
        self.brought[rank] = x
        self.barrier.wait(200)
        every = list(self.brought)
        self.messages += rank == 0
        self.barrier.wait(200)
        return every


class Group:
    """The `Collectives` of one thread, as far as a cache uses them."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.ranks = meeting, rank, meeting.barrier.parties

    def all_gather(self, x: Tensor) -> Tensor:
        assert x.is_contiguous()
        return torch.stack(self.meeting.exchange(self.rank, x))

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        return x.copy_(self.meeting.exchange(self.rank, x.clone())[source])


def on_ranks(ranks: int, work: Callable[[Group], Any]) -> tuple[list[Any], Meeting]:
    meeting = Meeting(ranks)

    def as_rank(rank: int) -> Any:
        try:
            return work(Group(meeting, rank))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(as_rank, range(ranks))), meeting


def sharded(config: TextConfig, group: Group, pages: int, dtype: torch.dtype) -> ShardedCache:
    """With NaN wherever nothing was written."""
    cache = ShardedCache(config, slots=SLOTS, pages=pages, group=group, page_size=PAGE, device=DEVICE, dtype=dtype)  # type: ignore[arg-type]
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    return cache


@st.composite
def all_cuts(draw: st.DrawFn) -> list[list[int]]:
    """Of each sequence the lengths in which it is fed: pieces of a prompt, and single tokens."""
    return draw(st.lists(st.lists(st.integers(1, 13) | st.just(1), min_size=1, max_size=5), min_size=1, max_size=4))


@pytest.fixture(scope="module")
def model(build: Callable[..., MiniMaxText], config: Callable[..., TextConfig]) -> MiniMaxText:
    """float64, in which a wrong key shows."""
    return build(config(attn_type_list=(1, 0, 1)), dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(cuts=all_cuts(), ranks=st.integers(1, 4), numbers=st.sampled_from([2**24, 40]))
@example(cuts=[[13] * 5] * 4, ranks=1, numbers=40)
@example(cuts=[[4, 1, 1, 1, 1, 1], [1, 1]], ranks=3, numbers=2**24)
def test_the_same_numbers_come_out(
    model: MiniMaxText, feed: Feed, cuts: list[list[int]], ranks: int, numbers: int
) -> None:
    """Prompts in pieces beside single tokens and batches of these alone, in whatever messages."""
    ids = [torch.randint(0, 50, (sum(lengths),)) for lengths in cuts]
    plain = HybridCache(model.config, slots=SLOTS, pages=80, page_size=PAGE, dtype=torch.float64)

    each = -(-80 // ranks)  # pages: four sequences of 65 tokens have room, however few ranks there are

    def work(group: Group) -> list[Tensor]:
        cache = sharded(model.config, group, each, torch.float64)
        found = feed(model, cache, ids, cuts)
        assert (cache.free_slots, cache.free_pages) == (SLOTS, each * ranks)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "_GATHERED", numbers)
        found, _ = on_ranks(ranks, work)
    want = feed(model, plain, ids, cuts)
    for got in found:
        for mine, other, right in zip(got, found[0], want, strict=True):
            assert torch.equal(mine, other)
            torch.testing.assert_close(mine, right, rtol=1e-6, atol=1e-6)


def test_single_tokens_by_the_kernel(
    build: Callable[..., MiniMaxText], config: Callable[..., TextConfig], feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of sequences some of which have nothing on a rank yet."""
    decode = pytest.importorskip("text_backbone.kernels.softmax.decode", reason="Triton is not installed")
    one_by_one, kernel = threading.Lock(), decode.partial_attentions  # Triton's interpreter is not for threads

    def locked(*args: Tensor) -> tuple[Tensor, Tensor]:
        with one_by_one:
            return kernel(*args)

    monkeypatch.setattr(decode, "partial_attentions", locked)
    model = build(config(attn_type_list=(0, 1), head_dim=16), dtype=torch.float32).to(DEVICE)
    ids = [torch.randint(0, 50, (n,), device=DEVICE) for n in (15, 3, 1)]
    cuts = [[13, 1, 1], [1, 1, 1], [1]]
    plain = HybridCache(model.config, slots=SLOTS, pages=80, page_size=PAGE, device=DEVICE)
    want = feed(model, plain, ids, cuts)
    monkeypatch.setattr(pages, "use_gpu_kernels", lambda q: True)
    found, _ = on_ranks(3, lambda group: feed(model, sharded(model.config, group, 20, torch.float32), ids, cuts))
    for got in found:
        for mine, right in zip(got, want, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5)


def step(model: MiniMaxText, cache: HybridCache, ids: Tensor, past: int, slot: int) -> Tensor:
    return model(model.embed(ids), Packed.of([len(ids)], past=[past], slots=[slot]), cache)


def test_a_rank_holds_its_share_and_one_message_a_layer_is_sent(model: MiniMaxText) -> None:
    ids = torch.randint(0, 50, (70,))

    def work(group: Group) -> tuple[list[int], int, int]:
        cache, sent = sharded(model.config, group, 7, torch.float64), []
        slot = cache.acquire()
        cache.reserve(slot, 70)
        for start, stop in ((0, 30), (30, 69), (69, 70)):
            before = group.meeting.messages
            step(model, cache, ids[start:stop], start, slot)
            sent.append(group.meeting.messages - before)
        own_pages = cache.keys[0, : len(cache.own_table[slot])]  # of the first softmax layer, without the scratch page
        written = own_pages.isfinite().all(-1).all(-1).sum()
        assert not cache.on_device([slot])
        return sent, cache.own_tokens(slot, 70), int(written)

    found, _ = on_ranks(3, work)
    assert [sent for sent, _, _ in found] == 3 * [[0, 2, 2]]  # two softmax layers, and nothing cached at first
    assert [own for _, own, _ in found] == [24, 24, 22]
    assert [written for _, _, written in found] == [24, 24, 22]


@pytest.mark.parametrize("tokens", [8, 10, 13])
def test_a_sequence_begins_with_what_another_has_left(model: MiniMaxText, tokens: int) -> None:
    """A page that is not full is copied, from one rank to another."""
    ids, other = torch.randint(0, 50, (2, 20))
    plain = HybridCache(model.config, slots=SLOTS, pages=80, page_size=PAGE, dtype=torch.float64)

    def run(cache: HybridCache) -> list[Tensor]:
        first, second = cache.acquire(), cache.acquire()
        cache.reserve(first, 20)
        step(model, cache, ids[:tokens], 0, first)
        states = cache.snapshot(first)
        cache.share(second, cache.pages_of(first)[: -(-tokens // PAGE)], tokens)
        cache.restore(second, states)
        cache.reserve(second, 20)
        outs = [step(model, cache, ids[tokens:], tokens, first), step(model, cache, other[tokens:], tokens, second)]
        cache.release(first)
        return [*outs, step(model, cache, other[:1], 20 - 1, second)]

    want = run(plain)
    found, _ = on_ranks(3, lambda group: run(sharded(model.config, group, 20, torch.float64)))
    for got in found:
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_a_sequence_without_room_is_refused_at_once(model: MiniMaxText) -> None:
    cache = sharded(model.config, Group(Meeting(1), 0), 5, torch.float64)
    with pytest.raises(ValueError, match="slot 0 is not in use"):
        cache.layers(Packed.of([3]))
    cache.acquire()
    with pytest.raises(ValueError, match="slot 0 has room for 0 tokens but its sequence comes to 3"):
        cache.layers(Packed.of([3]))


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [2, 3])
def test_on_a_gpu(build: Callable[..., MiniMaxText], config: Callable[..., TextConfig], feed: Feed, ranks: int) -> None:
    """Ranks on one GPU in bfloat16, as near to float64 as one is."""
    fields = config(attn_type_list=(0, 1), head_dim=128, hidden_size=256, num_experts_per_tok=4)
    exact = build(fields, dtype=torch.float64).to(DEVICE)
    model = build(fields, dtype=torch.float64).to(DEVICE, torch.bfloat16)
    ids = [torch.randint(0, 50, (n,), device=DEVICE) for n in (5000, 300, 4)]
    cuts = [[4000, 997, 1, 1, 1], [298, 1, 1], [1, 1, 1, 1]]
    caches = (
        HybridCache(fields, slots=SLOTS, pages=2000, page_size=PAGE, device=DEVICE, dtype=each.norm.weight.dtype)
        for each in (exact, model)
    )
    want, one = (feed(each, cache, ids, cuts) for each, cache in zip((exact, model), caches, strict=True))
    found, _ = on_ranks(ranks, lambda group: feed(model, sharded(fields, group, 1400, torch.bfloat16), ids, cuts))
    for got in found:
        for mine, whole, right in zip(got, one, want, strict=True):
            error, usual = ((x.double() - right).norm() for x in (mine, whole))
            assert error < 1.3 * usual
