from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from text_backbone import CacheFull, HybridCache, MiniMaxText, Packed, TextConfig
from text_backbone.cache import bytes_needed

SHAPE = TextConfig(
    vocab_size=4, hidden_size=4, num_attention_heads=2, num_key_value_heads=1, head_dim=4, rotary_dim=2,
    intermediate_size=4, num_local_experts=2, attn_type_list=(0, 1, 0),
)  # fmt: skip
SLOTS, PAGES, PAGE = 3, 7, 4


class Allocation(RuleBasedStateMachine):
    """Any run of acquire, reserve and release: no page has two owners and none is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = HybridCache(SHAPE, slots=SLOTS, pages=PAGES, page_size=PAGE)
        self.live: dict[int, int] = {}  # slot -> pages

    @rule()
    def acquire(self) -> None:
        if len(self.live) == SLOTS:
            with pytest.raises(CacheFull, match="release"):
                self.cache.acquire()
        else:
            slot = self.cache.acquire()
            assert slot not in self.live
            assert not self.cache.states[:, slot].any()
            self.cache.states[:, slot] = 1
            self.live[slot] = 0

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tokens=st.integers(0, PAGE * PAGES + 1))
    def reserve(self, data: st.DataObject, tokens: int) -> None:
        slot = data.draw(st.sampled_from(sorted(self.live)))
        pages = max(self.live[slot], -(-tokens // PAGE))
        if pages - self.live[slot] > PAGES - sum(self.live.values()):
            with pytest.raises(CacheFull, match="pages"):
                self.cache.reserve(slot, tokens)
        else:
            self.cache.reserve(slot, tokens)
            self.live[slot] = pages

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.live)))
        self.cache.release(slot)
        del self.live[slot]
        for use in (self.cache.release, self.cache.capacity, lambda s: self.cache.reserve(s, 1)):
            with pytest.raises(ValueError, match="not in use"):
                use(slot)

    @invariant()
    def pages_have_one_owner(self) -> None:
        owned = [page for slot, n in self.live.items() for page in self.cache.page_table[slot, :n].tolist()]
        assert len(set(owned)) == len(owned)
        assert self.cache.free_pages == PAGES - len(owned)
        assert self.cache.free_slots == SLOTS - len(self.live)
        assert all(self.cache.capacity(slot) == n * PAGE for slot, n in self.live.items())


TestAllocation = Allocation.TestCase
TestAllocation.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize("scratch", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bytes_needed(scratch: bool, dtype: torch.dtype) -> None:
    cache = HybridCache(SHAPE, slots=SLOTS, pages=PAGES, page_size=PAGE, dtype=dtype, scratch=scratch)
    needed = bytes_needed(SHAPE, slots=SLOTS, pages=PAGES, page_size=PAGE, dtype=dtype, scratch=scratch)
    assert needed == cache.nbytes == sum(tensor.nbytes for tensor in vars(cache).values() if torch.is_tensor(tensor))


def test_shapes_and_dtypes() -> None:
    cache = HybridCache(SHAPE, slots=SLOTS, pages=PAGES, page_size=PAGE, dtype=torch.bfloat16)
    assert cache.states.shape == (2, SLOTS, 2, 4, 4)
    assert cache.states.dtype == torch.float32
    assert cache.keys.shape == cache.values.shape == (1, PAGES, PAGE, 1, 4)
    assert cache.keys.dtype == cache.values.dtype == torch.bfloat16


@pytest.mark.parametrize(("slots", "pages", "page_size"), [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_empty_caches_are_refused(slots: int, pages: int, page_size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        HybridCache(SHAPE, slots=slots, pages=pages, page_size=page_size)


def test_forward_needs_reserved_room(model: MiniMaxText) -> None:
    cache = HybridCache(model.config, slots=2, pages=4, page_size=4)
    slot = cache.acquire()
    cache.reserve(slot, 8)
    embeds = model.embed(torch.zeros(9, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"call reserve\(0, 9\)"):
        model(embeds, Packed.of([9], slots=[slot]), cache)
    assert not cache.states.any()
    with pytest.raises(ValueError, match="slot 1 is not in use"):
        model(embeds, Packed.of([9], slots=[1]), cache)


def test_a_released_slot_starts_clean(model: MiniMaxText, feed: Callable[..., list[Tensor]]) -> None:
    cache = HybridCache(model.config, slots=1, pages=4, page_size=4)
    ids = [torch.randint(0, 50, (13,))]
    first = feed(model, cache, ids, [[13]])[0]
    feed(model, cache, [torch.randint(0, 50, (16,))], [[16]])
    assert torch.equal(feed(model, cache, ids, [[13]])[0], first)


class Twins:
    """A sequence that is fed piece by piece, and what of it a cache has kept."""

    def __init__(self, model: MiniMaxText, cache: HybridCache, ids: Tensor) -> None:
        self.model, self.cache, self.ids = model, cache, ids

    def read(self, slot: int, start: int, stop: int) -> Tensor:
        self.cache.reserve(slot, stop)
        packed = Packed.of([stop - start], past=[start], slots=[slot])
        return self.model(self.model.embed(self.ids[start:stop]), packed, self.cache)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_sequence_goes_on_from_any_of_its_beginnings(model: MiniMaxText, data: st.DataObject) -> None:
    """Pages that are shared, the last one copied, and states that were kept, while their owner writes on."""
    length = data.draw(st.integers(2, 30))
    cut = data.draw(st.integers(1, length - 1))
    ids = torch.randint(0, 50, (length,))
    cache = HybridCache(model.config, slots=3, pages=30, page_size=4)
    twins = Twins(model, cache, ids)
    first = cache.acquire()
    twins.read(first, 0, cut)
    cache.keep(first, 7)
    states = [kept.clone() for kept in cache.snapshot(first)]
    pages = list(cache.pages_of(first))
    cache.retain(pages)
    expected = twins.read(first, cut, length)
    owner_is_gone = data.draw(st.booleans())
    if owner_is_gone:
        cache.release(first)
    used = cache.pages - cache.free_pages
    second, third = cache.acquire(), cache.acquire()
    cache.share(second, pages, cut)
    cache.recall(second, 7)
    assert [kept.tolist() for kept in cache.snapshot(second)] == [kept.tolist() for kept in states]
    assert cache.pages - cache.free_pages == used + (cut % 4 > 0), "only a page that is not full is copied"
    cache.reserve(third, 9)  # something else, which must not touch them
    model(model.embed(torch.randint(0, 50, (9,))), Packed.of([9], slots=[third]), cache)
    torch.testing.assert_close(twins.read(second, cut, length), expected, rtol=1e-5, atol=1e-5)
    for slot in (second, third) if owner_is_gone else (first, second, third):
        cache.release(slot)
    cache.drop(pages)
    assert (cache.free_slots, cache.free_pages, cache.idle_pages) == (3, 30, 0)


def test_a_snapshot_is_written_to_again(model: MiniMaxText) -> None:
    cache = HybridCache(model.config, slots=1, pages=1, page_size=4)
    slot = cache.acquire()
    first = cache.snapshot(slot)
    assert [states.shape for states in first] == [cache.states.shape[2:]] * len(cache.states)
    cache.states[:, slot] = 3
    assert cache.snapshot(slot, first) is first
    assert all(bool((states == 3).all()) for states in first)
    cache.release(slot)
    for use in (cache.snapshot, lambda s: cache.restore(s, first), cache.pages_of):
        with pytest.raises(ValueError, match="not in use"):
            use(slot)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_states_are_kept_at_marks_within_a_pass(model: MiniMaxText, data: st.DataObject) -> None:
    """The states are those of a sequence that ends there, and what the pass gives is as without marks."""
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    pasts = [data.draw(st.integers(0, 5)) for _ in lengths]
    every = [(i, tokens) for i, length in enumerate(lengths) for tokens in range(1, length + 1)]
    marks = data.draw(st.lists(st.sampled_from(every), unique=True, max_size=4))
    ids = [torch.randint(0, 50, (past + length,)) for past, length in zip(pasts, lengths, strict=True)]
    cache = HybridCache(model.config, slots=4, pages=40, page_size=4)

    def begin(i: int) -> int:
        slot = cache.acquire()
        cache.reserve(slot, len(ids[i]))
        if pasts[i]:
            model(model.embed(ids[i][: pasts[i]]), Packed.of([pasts[i]], slots=[slot]), cache)
        return slot

    def read(marks: list[tuple[int, int, int]]) -> Tensor:
        slots = [begin(i) for i in range(len(ids))]
        tokens = torch.cat([sequence[past:] for sequence, past in zip(ids, pasts, strict=True)])
        hidden = model(model.embed(tokens), Packed.of(lengths, past=pasts, slots=slots, marks=marks), cache)
        for slot in slots:
            cache.release(slot)
        return hidden

    expected = read([])
    found = read([(i, tokens, place) for place, (i, tokens) in enumerate(marks)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for place, (i, tokens) in enumerate(marks):
        slot = begin(i)
        part = ids[i][pasts[i] : pasts[i] + tokens]
        model(model.embed(part), Packed.of([tokens], past=[pasts[i]], slots=[slot]), cache)
        want = cache.snapshot(slot)
        cache.recall(slot, place)
        for kept, states in zip(cache.snapshot(slot), want, strict=True):
            torch.testing.assert_close(kept, states, rtol=1e-5, atol=1e-5)
        cache.release(slot)
