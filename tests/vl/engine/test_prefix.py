"""What is kept of sequences, over a memory that knows what was written where: no hit on anything else, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text_backbone.allocator import Allocator
from vl.engine.prefix import LEAST, PrefixCounts, Prefixes, Sequenced
from vl.engine.scheduler import Scheduler


@dataclass(eq=False, kw_only=True)
class Text(Sequenced):
    """A sequence of numbers, of which those behind the prompt are written."""

    ids: list[int] = field(default_factory=list)

    def key_at(self, tokens: int) -> bytes:
        return repr(self.ids[:tokens]).encode()


class Store(Allocator):
    """Pages hold the numbers themselves, and states the whole sequence before them."""

    def __init__(self, slots: int, pages: int, page_size: int) -> None:
        super().__init__(slots, pages, page_size)
        self.contents: dict[int, list[int]] = {}
        self.states: dict[int, list[int]] = {}
        self.kept: dict[int, list[int]] = {}

    def acquire(self) -> int:
        slot = super().acquire()
        self.states[slot] = []
        return slot

    def share(self, slot: int, pages: Sequence[int], tokens: int) -> list[int]:
        new = super().share(slot, pages, tokens)
        for page in new:
            self.contents[page] = list(self.contents[pages[-1]])
        return new

    def keep(self, slot: int, place: int) -> None:
        self.kept[place] = list(self.states[slot])

    def recall(self, slot: int, place: int) -> None:
        self.states[slot] = list(self.kept[place])

    def read(self, entry: Text, tokens: int) -> None:
        """What a pass does: the sequence goes on behind its states, and the marks are kept."""
        assert entry.slot is not None
        assert self.states[entry.slot] == entry.ids[: entry.computed]
        assert self.cached(entry.slot)[: entry.computed] == entry.ids[: entry.computed]
        pages = self.pages_of(entry.slot)
        for at in range(entry.computed, entry.computed + tokens):
            page = self.contents.setdefault(pages[at // self.page_size], [-1] * self.page_size)
            page[at % self.page_size] = entry.ids[at]
        for at, place in entry.marks:
            self.kept[place] = entry.ids[: entry.computed + at]
        entry.computed += tokens
        self.states[entry.slot] = entry.ids[: entry.computed]

    def cached(self, slot: int) -> list[int]:
        return [number for page in self.pages_of(slot) for number in self.contents.get(page, [-1] * self.page_size)]


def step(scheduler: Scheduler[Text], memory: Store, prefixes: Prefixes, fails: bool = False) -> list[Text]:
    """Returns those that were read to their end, each with a number more."""
    batch = scheduler.schedule()
    try:
        with prefixes.marking(batch):
            if fails:
                raise RuntimeError
            for entry, tokens in batch:
                memory.read(entry, tokens)
    except RuntimeError:
        for entry, _ in batch:
            scheduler.preempt(entry)
        return []
    ended = [entry for entry, _ in batch if entry.computed == entry.known]
    for entry in ended:
        entry.written += 1
        entry.ids.append(len(entry.ids) % 3)
    return ended


def text(ids: Sequence[int], most: int = 1, boundaries: Sequence[int] = ()) -> Text:
    return Text(prompt_tokens=len(ids), max_new_tokens=most, ids=list(ids), boundaries=boundaries)


def made(slots: int, pages: int, page_size: int, places: int) -> tuple[Scheduler[Text], Store, Prefixes]:
    memory = Store(slots, pages, page_size)
    prefixes = Prefixes(memory, places, PrefixCounts())
    scheduler = Scheduler[Text](slots, 40)
    scheduler.memory, scheduler.beginnings = memory, prefixes
    return scheduler, memory, prefixes


jobs = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=1, max_size=4),  # parts of its prompt
        st.lists(st.integers(1, 120), unique=True, max_size=4).map(sorted),  # boundaries
        st.integers(1, 20),  # tokens to be written
        st.integers(0, 20),  # the step it comes in
        st.one_of(st.just(10**9), st.integers(0, 15)),  # steps after which its caller leaves
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(
    jobs=jobs,
    parts=st.tuples(*[st.integers(1, 40)] * 3),
    sizes=st.tuples(st.integers(1, 3), st.integers(0, 10), st.integers(1, 9), st.integers(0, 5)),
    fails=st.sets(st.integers(0, 40), max_size=6),
    clears=st.sets(st.integers(0, 40), max_size=2),
)
def test_any_run_reads_what_it_would_alone_and_loses_nothing(
    jobs: list[tuple[list[int], list[int], int, int, int]],
    parts: tuple[int, ...],
    sizes: tuple[int, int, int, int],
    fails: set[int],
    clears: set[int],
) -> None:
    """Texts of a few parts that recur, a small memory, steps that fail and callers that leave."""
    slots, spare, page_size, places = sizes
    texts = []
    for drawn, cuts, most, _, _ in jobs:
        ids = [part for part in drawn for _ in range(parts[part])]
        texts.append(text(ids, most, [cut for cut in cuts if cut < len(ids)]))
        texts[-1].priority = len(ids) % 2
    pages = max(-(-entry.most // page_size) for entry in texts) + spare
    scheduler, memory, prefixes = made(slots, pages, page_size, places)
    ended: set[Text] = set()
    for number in range(3000):
        for entry, (*_, comes, leaves) in zip(texts, jobs, strict=True):
            if comes == number:
                scheduler.add(entry)
            if comes + leaves == number and entry not in ended:
                prefixes.keep(entry)
                scheduler.remove(entry)
                ended.add(entry)
        for entry in step(scheduler, memory, prefixes, number in fails):
            if entry.written == entry.max_new_tokens:
                prefixes.keep(entry)
                scheduler.remove(entry)
                ended.add(entry)
        if number in clears:
            prefixes.clear()
        assert len(prefixes) <= places
        if number > 20 and len(ended) == len(texts):
            break
    assert len(ended) == len(texts)
    assert memory.free_slots == memory.slots
    assert prefixes.free_places + len(prefixes) == places
    assert memory.free_pages + memory.idle_pages == memory.pages
    prefixes.clear()
    assert (memory.free_pages, memory.idle_pages, len(prefixes)) == (memory.pages, 0, 0)
    counts = prefixes.counts
    ran = [entry for entry in texts if entry.cached_tokens is not None]
    assert counts.hits + counts.misses.total() == len(ran)
    assert counts.cached == sum(entry.cached_tokens or 0 for entry in ran)
    assert counts.tokens == sum(entry.prompt_tokens for entry in ran)


def run(scheduler: Scheduler[Text], memory: Store, prefixes: Prefixes, entry: Text) -> int:
    """Tokens of the prompt that were found."""
    if entry.arrival < 0:
        scheduler.add(entry)
    while entry.written < entry.max_new_tokens:
        step(scheduler, memory, prefixes)
    prefixes.keep(entry)
    scheduler.remove(entry)
    assert entry.cached_tokens is not None
    return entry.cached_tokens


def test_a_conversation_goes_on_where_it_ended_and_a_boundary_serves_another_question() -> None:
    setup = made(2, 100, 8, 10)
    assert run(*setup, text([1] * 40 + [2] * 20, 20, [40])) == 0
    answer = [at % 3 for at in range(60, 79)]
    assert run(*setup, text([1] * 40 + [2] * 20 + answer + [5] * 30)) == 79, "all that was read of the first"
    assert run(*setup, text([1] * 40 + [3] * 20)) == 40, "up to where they differ"
    assert run(*setup, text([4] * 90)) == 0
    assert run(*setup, text([1] * 41)) == 40
    assert run(*setup, text([1] * 40)) == 0, "the last token is read in any case"
    counts = setup[2].counts
    assert (counts.hits, dict(counts.misses), counts.cached) == (3, {"new": 3}, 79 + 40 + 40)


def test_a_system_prompt_is_computed_once_for_those_that_come_together() -> None:
    scheduler, memory, prefixes = made(3, 12, 8, 10)
    run(scheduler, memory, prefixes, text([1] * 40 + [2] * 5, 1, [40]))
    together = [text([1] * 40 + [3, number] * 4) for number in range(3)]
    for entry in together:
        scheduler.add(entry)
    batch = scheduler.schedule()
    assert [tokens for _, tokens in batch] == [8, 8, 8]
    assert [entry.cached_tokens for entry in together] == [40] * 3
    assert memory.pages - memory.free_pages == 5 + 3, "they share five pages"


def test_those_that_come_together_wait_for_the_first_to_read_what_they_share() -> None:
    scheduler, memory, prefixes = made(4, 200, 8, 10)
    scheduler.budget = 1000
    together = [text([1] * 300 + [2, number] * 4, 1, [300]) for number in range(3)]
    other = text([3] * 50)
    for entry in (*together, other):
        scheduler.add(entry)
    assert scheduler.schedule() == [(together[0], 308), (other, 50)]
    step(scheduler, memory, prefixes)
    scheduler.remove(together[0])
    assert [(entry, tokens) for entry, tokens in scheduler.schedule() if entry in together] == [
        (together[1], 8),
        (together[2], 8),
    ]


def test_what_gives_way_to_a_higher_priority_goes_on_where_it_was() -> None:
    scheduler, memory, prefixes = made(1, 200, 8, 10)
    slow, urgent = text([1] * 30, 9), text([2] * 30)
    urgent.priority = 1
    scheduler.add(slow)
    step(scheduler, memory, prefixes)
    assert step(scheduler, memory, prefixes) == [slow]
    run(scheduler, memory, prefixes, urgent)
    assert scheduler.schedule() == [(slow, 1)]
    assert slow.computed == 31
    assert prefixes.free_places + len(prefixes) == 10


def test_pages_are_given_back_before_anybody_is_preempted() -> None:
    scheduler, memory, prefixes = made(2, 12, 8, 10)
    for number in range(2):
        run(scheduler, memory, prefixes, text([number] * 40))
    assert (memory.free_pages, memory.idle_pages, len(prefixes)) == (2, 10, 2)
    assert run(scheduler, memory, prefixes, text([7] * 50)) == 0
    assert len(prefixes) == 2
    assert run(scheduler, memory, prefixes, text([1] * 41)) == 40, "the longest unused went first"
    assert run(scheduler, memory, prefixes, text([0] * 41)) == 0
    assert prefixes.counts.misses == {"new": 3, "evicted": 1}


def test_places_are_taken_from_the_longest_unused() -> None:
    setup = made(1, 100, 8, 2)
    for number in (1, 2):
        run(*setup, text([number] * 40))
    assert run(*setup, text([1] * 45)) == 40
    run(*setup, text([3] * 40))
    assert len(setup[2]) == 2
    assert run(*setup, text([1] * 44)) == 40
    assert run(*setup, text([2] * 44)) == 0


def test_the_page_that_a_beginning_ends_in_is_not_copied_at_its_own_expense() -> None:
    """There is no page for the copy but the one to be copied: the sequence is read anew."""
    setup = made(1, 5, 8, 4)
    run(*setup, text([1] * 36))
    assert setup[1].free_pages == 0
    assert run(*setup, text([1] * 36 + [2] * 4)) == 0


@pytest.mark.parametrize("places", [0, 4])
def test_what_a_failed_step_was_to_keep_is_not_kept(places: int) -> None:
    scheduler, memory, prefixes = made(2, 50, 8, places)
    entry = text([1] * 39, 1, [20])
    scheduler.add(entry)
    step(scheduler, memory, prefixes, fails=True)
    assert len(prefixes) == 0
    assert entry.marks == ()
    assert run(scheduler, memory, prefixes, entry) == 0
    assert len(prefixes) == min(places, 2)
    assert prefixes.counts.misses == ({"new": 1} if places else {"off": 1})


def test_little_is_not_worth_a_place() -> None:
    setup = made(1, 50, 8, 4)
    run(*setup, text([1] * (LEAST - 1)))
    assert len(setup[2]) == 0
    run(*setup, text([1] * LEAST))
    run(*setup, text([1] * (2 * LEAST - 1)))
    assert len(setup[2]) == 1


def test_after_it_was_cleared_nothing_is_found() -> None:
    setup = made(1, 50, 8, 4)
    run(*setup, text([1] * 40))
    setup[2].clear()
    assert run(*setup, text([1] * 45)) == 0
    assert setup[2].counts.misses == {"new": 1, "cleared": 1}
