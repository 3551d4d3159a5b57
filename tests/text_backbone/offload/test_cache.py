"""Sequences whose pages are in part in host memory, against a cache that has them all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from text_backbone import CacheFull, HybridCache, MiniMaxText, Packed, TextConfig
from text_backbone.cache import PagedKV
from text_backbone.offload import OffloadedCache, device_bytes, host, host_bytes
from text_backbone.offload.cache import OffloadedKV

PAGE, PAGES = 4, 40
Feed = Callable[..., list[Tensor]]


@st.composite
def cuts(draw: st.DrawFn) -> list[list[int]]:
    """Of each sequence the lengths in which it is fed: pieces of a prompt, and single tokens."""
    return draw(st.lists(st.lists(st.integers(1, 13) | st.just(1), min_size=1, max_size=5), min_size=1, max_size=4))


@pytest.fixture(scope="module")
def model(build: Callable[..., MiniMaxText], config: Callable[..., TextConfig]) -> MiniMaxText:
    """With softmax layers next to each other, and apart; float64, in which a wrong key shows."""
    return build(config(attn_type_list=(1, 0, 1, 1, 0)), dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), cuts=cuts(), room=st.integers(1, 4))
def test_the_same_numbers_come_out(
    model: MiniMaxText, feed: Feed, data: st.DataObject, cuts: list[list[int]], room: int
) -> None:
    """Whatever is on the device, however small the buffers, and however the batch is made up."""
    pages = data.draw(st.integers(1, PAGES - 1))
    ids = [torch.randint(0, 50, (sum(lengths),)) for lengths in cuts]
    plain = HybridCache(model.config, slots=len(ids), pages=PAGES * 2, page_size=PAGE, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "BUFFER_TOKENS", room * PAGE)
        cache = OffloadedCache(
            model.config, slots=len(ids), pages=pages, host_pages=PAGES * 2 - pages, page_size=PAGE,
            dtype=torch.float64,
        )  # fmt: skip
    cache.host.buffers.fill_(torch.nan)
    for layer in cache.host.segments:
        for segment in layer:
            segment.fill_(torch.nan)
    for got, want in zip(feed(model, cache, ids, cuts), feed(model, plain, ids, cuts), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    assert (cache.free_slots, cache.free_pages) == (len(ids), PAGES * 2)
    assert cache.on_device(range(len(ids)))


class Owning(RuleBasedStateMachine):
    """Any run of acquire, reserve and release: the page table names pages of the device, or none that can be owned."""

    def __init__(self) -> None:
        super().__init__()
        config = TextConfig(
            vocab_size=4, hidden_size=4, num_attention_heads=2, num_key_value_heads=1, head_dim=4, rotary_dim=2,
            intermediate_size=4, num_local_experts=2, attn_type_list=(0, 1),
        )  # fmt: skip
        self.cache = OffloadedCache(config, slots=3, pages=3, host_pages=4, page_size=PAGE)
        self.live: list[int] = []

    @precondition(lambda self: len(self.live) < 3)
    @rule()
    def acquire(self) -> None:
        self.live.append(self.cache.acquire())
        assert self.cache.on_device([self.live[-1]])

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tokens=st.integers(0, 7 * PAGE))
    def reserve(self, data: st.DataObject, tokens: int) -> None:
        slot = data.draw(st.sampled_from(self.live))
        try:
            self.cache.reserve(slot, tokens)
        except CacheFull:
            assert self.cache.free_pages < 7

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.live))
        self.cache.release(slot)
        self.live.remove(slot)

    @invariant()
    def who_has_what_is_known(self) -> None:
        owned = {slot: self.cache._allocator.pages_of(slot) for slot in self.live}
        for slot, pages in owned.items():
            places = [self.cache.place(page) for page in pages]
            assert self.cache.on_device([slot]) == all(place < 3 for place in places)
            assert self.cache.page_table[slot, : len(pages)].tolist() == [min(place, 3) for place in places]
        assert sorted(map(self.cache.place, range(7))) == list(range(7))
        assert [self.cache.place(page) for page in self.cache._pages_at] == [0, 1, 2]
        assert self.cache.free_pages == 7 - sum(map(len, owned.values()))
        assert self.cache.on_device([slot for slot in range(3) if slot not in self.live])


TestOwning = Owning.TestCase
TestOwning.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize(("host_pages", "page_size"), [(1, 4), (5, 4), (7, 30000)])
def test_bytes(model: MiniMaxText, host_pages: int, page_size: int) -> None:
    sizes: dict[str, Any] = {"host_pages": host_pages, "page_size": page_size, "dtype": torch.bfloat16}
    cache = OffloadedCache(model.config, slots=2, pages=3, **sizes)
    assert cache.nbytes == device_bytes(model.config, slots=2, pages=3, **sizes)
    assert cache.host.nbytes == host_bytes(model.config, **sizes)
    page = 3 * 2 * 2 * page_size * 2 * 8  # of three layers
    assert host_pages * page <= cache.host.nbytes < (host_pages + 65536 // page_size) * page


def test_what_is_wholly_on_the_device_goes_as_ever(model: MiniMaxText) -> None:
    cache = OffloadedCache(model.config, slots=2, pages=3, host_pages=3, page_size=PAGE)
    slots = [cache.acquire(), cache.acquire()]
    cache.reserve(slots[0], 2 * PAGE)
    cache.reserve(slots[1], 2 * PAGE)
    kinds = [{type(memory) for memory in cache.layers(Packed.of([1], slots=[slot]))} for slot in slots]
    assert kinds == [{Tensor, PagedKV}, {Tensor, OffloadedKV}]
    with pytest.raises(ValueError, match="has room for 8 tokens"):
        cache.layers(Packed.of([2 * PAGE + 1], slots=slots[1:]))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_sequence_goes_on_from_what_another_has_left(model: MiniMaxText, data: st.DataObject) -> None:
    """Pages that are shared and the one that is copied, wherever each of them is."""
    length = data.draw(st.integers(2, 30))
    cut = data.draw(st.integers(1, length - 1))
    before = data.draw(st.integers(0, 5))  # pages that something else has
    ids = torch.randint(0, 50, (length,))
    cache = OffloadedCache(
        model.config, slots=3, pages=data.draw(st.integers(1, 12)), host_pages=20, page_size=PAGE, dtype=torch.float64
    )

    def read(slot: int, start: int, stop: int) -> Tensor:
        cache.reserve(slot, stop)
        return model(model.embed(ids[start:stop]), Packed.of([stop - start], past=[start], slots=[slot]), cache)

    other, first, second = cache.acquire(), cache.acquire(), cache.acquire()
    cache.reserve(other, before * PAGE)
    read(first, 0, cut)
    cache.keep(first, 0)
    pages = list(cache.pages_of(first))
    cache.retain(pages)
    expected = read(first, cut, length)
    cache.release(other if data.draw(st.booleans()) else first)
    if data.draw(st.booleans()):  # something else goes where kept pages are
        with contextlib.suppress(CacheFull):
            third = cache.acquire()
            cache.reserve(third, 40)
            model(model.embed(torch.randint(0, 50, (40,))), Packed.of([40], slots=[third]), cache)
            if data.draw(st.booleans()):
                cache.release(third)
    cache.share(second, pages, cut)
    cache.recall(second, 0)
    places = [cache.place(page) for page in cache.pages_of(second)]
    assert cache.on_device([second]) == all(place < cache.device_pages for place in places)
    torch.testing.assert_close(read(second, cut, length), expected, rtol=1e-6, atol=1e-6)


def test_kept_pages_make_room_on_the_device(model: MiniMaxText) -> None:
    cache = OffloadedCache(model.config, slots=2, pages=3, host_pages=6, page_size=PAGE, dtype=torch.float64)
    first = cache.acquire()
    cache.reserve(first, 3 * PAGE)
    pages = list(cache.pages_of(first))
    cache.retain(pages)
    cache.keys[:, pages] = torch.arange(3.0).double()[None, :, None, None, None]
    cache.release(first)
    second = cache.acquire()
    cache.reserve(second, 2 * PAGE)
    assert cache.on_device([second])
    assert sorted(cache.place(page) < 3 for page in pages) == [False, False, True]
    cache.release(second)
    third = cache.acquire()
    cache.share(third, pages, 3 * PAGE)
    assert cache.on_device([third]), "they come back when a slot shares them"
    assert cache.keys[0, [cache.place(page) for page in pages], 0, 0, 0].tolist() == [0, 1, 2]
