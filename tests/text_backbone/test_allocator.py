"""Any run of the allocator's calls against a model of it that names every holder of every page."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from text_backbone.allocator import Allocator, CacheFull, Numbers

SLOTS, PAGES, PAGE = 3, 8, 4


class Sharing(RuleBasedStateMachine):
    """No page is lost, none is free while somebody holds it, and none is given out while it is not free."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = Allocator(SLOTS, PAGES, PAGE)
        self.slots: dict[int, list[int]] = {}
        self.kept: list[list[int]] = []  # prefixes that are held without a slot

    def held(self) -> set[int]:
        return {page for pages in (*self.slots.values(), *self.kept) for page in pages}

    @precondition(lambda self: len(self.slots) < SLOTS)
    @rule()
    def acquire(self) -> None:
        slot = self.allocator.acquire()
        assert slot not in self.slots
        self.slots[slot] = []

    @precondition(lambda self: len(self.slots) == SLOTS)
    @rule()
    def no_slot_is_left(self) -> None:
        with pytest.raises(CacheFull, match="all 3 cache slots"):
            self.allocator.acquire()

    @precondition(lambda self: self.slots)
    @rule(data=st.data(), tokens=st.integers(0, PAGE * (PAGES + 1)))
    def reserve(self, data: st.DataObject, tokens: int) -> None:
        slot = data.draw(st.sampled_from(sorted(self.slots)))
        missing, free = max(0, -(-tokens // PAGE) - len(self.slots[slot])), PAGES - len(self.held())
        if missing > free:
            with pytest.raises(CacheFull, match=f"need {missing} more pages .* but {free} of 8"):
                self.allocator.reserve(slot, tokens)
            return
        new = self.allocator.reserve(slot, tokens)
        assert len(new) == missing
        assert not set(new) & self.held()
        self.slots[slot] += new

    @precondition(lambda self: any(self.slots.values()))
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        pages = data.draw(st.sampled_from([pages for pages in self.slots.values() if pages]))
        prefix = pages[: data.draw(st.integers(1, len(pages)))]
        self.allocator.retain(prefix)
        self.kept.append(prefix)

    @precondition(lambda self: self.kept and [] in self.slots.values())
    @rule(data=st.data(), rest=st.integers(1, PAGE))
    def begin_with_a_kept_prefix(self, data: st.DataObject, rest: int) -> None:
        slot = next(slot for slot, pages in self.slots.items() if not pages)
        prefix = data.draw(st.sampled_from(self.kept))
        tokens, free = (len(prefix) - 1) * PAGE + rest, PAGES - len(self.held())
        with pytest.raises(ValueError, match=f"{tokens} tokens lie in {len(prefix)} pages, not in {len(prefix) + 1}"):
            self.allocator.share(slot, [*prefix, prefix[0]], tokens)
        if rest < PAGE and not free:
            with pytest.raises(CacheFull, match="no page is free for a copy"):
                self.allocator.share(slot, prefix, tokens)
            return
        new = self.allocator.share(slot, prefix, tokens)
        assert len(new) == (rest < PAGE)
        assert not set(new) & self.held()
        self.slots[slot] += prefix[: len(prefix) - len(new)] + new
        with pytest.raises(ValueError, match="has pages already"):
            self.allocator.share(slot, prefix, tokens)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.kept) - 1))
        self.allocator.drop(self.kept.pop(index))

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.slots)))
        self.allocator.release(slot)
        del self.slots[slot]
        for use in (self.allocator.release, self.allocator.capacity, lambda s: self.allocator.reserve(s, 1)):
            with pytest.raises(ValueError, match=f"slot {slot} is not in use"):
                use(slot)

    @precondition(lambda self: len(self.held()) < PAGES)
    @rule(data=st.data())
    def free_pages_are_nobodys(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(set(range(PAGES)) - self.held())))
        for use in (self.allocator.retain, self.allocator.drop):
            with pytest.raises(ValueError, match="free"):
                use([page])

    @precondition(lambda self: self.held() - {page for pages in self.kept for page in pages})
    @rule(data=st.data())
    def what_slots_hold_is_not_dropped(self, data: st.DataObject) -> None:
        kept = {page for pages in self.kept for page in pages}
        page = data.draw(st.sampled_from(sorted(self.held() - kept)))
        with pytest.raises(ValueError, match=f"page {page} is not kept"):
            self.allocator.drop([page])

    @invariant()
    def counts_agree(self) -> None:
        assert self.allocator.free_pages == PAGES - len(self.held())
        assert self.allocator.free_slots == SLOTS - len(self.slots)
        assert self.allocator.idle_pages == len(self.held()) - len({p for pages in self.slots.values() for p in pages})
        used = [page for pages in self.slots.values() for page in pages]
        for prefix in self.kept:
            assert self.allocator.in_slots(prefix) == len(set(prefix) & set(used))
            once = [p for p in prefix if sum(p in kept for kept in self.kept) == 1 and p not in used]
            assert self.allocator.last_held(prefix) == bool(once)
        for slot, pages in self.slots.items():
            assert self.allocator.pages_of(slot) == pages
            assert self.allocator.capacity(slot) == len(pages) * PAGE


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.lists(st.integers(0, 5), max_size=40))
def test_numbers_are_taken_from_the_lowest(choices: list[int]) -> None:
    numbers, free = Numbers(5), set(range(5))
    for choice in choices:
        taken = sorted(set(range(5)) - free)
        if choice < len(taken):
            numbers.give_back(taken[choice])
            free.add(taken[choice])
        elif free:
            assert numbers.take() == min(free)
            free.remove(min(free))
        else:
            with pytest.raises(IndexError):
                numbers.take()
        assert len(numbers) == len(free)


def test_a_large_cache_costs_nothing_until_it_is_used() -> None:
    allocator = Allocator(10**15, 10**15, 1)
    assert (allocator.acquire(), allocator.reserve(0, 3), allocator.free_pages) == (0, [0, 1, 2], 10**15 - 3)
