"""The scheduler without a model: whatever arrives, budgets hold, pages are conserved, and everybody comes to an end."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text_backbone.allocator import Allocator
from vl.engine.scheduler import Entry, Scheduler


@dataclass(eq=False, kw_only=True)
class Job(Entry):
    """A request that ends after `length` tokens, or when its caller goes away after `leaves` steps."""

    name: int = 0
    length: int = 1
    leaves: int = 10**9
    comes: int = 0  # in this step
    read: int = 0  # prompt tokens and written ones that were read, again after it was preempted


def job(name: int, draw: tuple[int, int, int, int, int, int]) -> Job:
    prompt, most, length, comes, leaves, priority = draw
    return Job(
        prompt_tokens=prompt, max_new_tokens=most, name=name, length=min(length, most), comes=comes, leaves=leaves,
        priority=priority,
    )  # fmt: skip


jobs = st.lists(
    st.tuples(
        st.integers(1, 30), st.integers(1, 20), st.integers(1, 20), st.integers(0, 20),
        st.one_of(st.just(10**9), st.integers(0, 15)), st.integers(0, 2),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


def advance(scheduler: Scheduler[Job], batch: list[tuple[Job, int]]) -> list[Job]:
    """What a runner does to the entries; returns those that end."""
    for entry, tokens in batch:
        entry.computed += tokens
        entry.read += tokens
        if entry.computed == entry.known:
            entry.written += 1
            entry.alone = False
    return [entry for entry, _ in batch if entry.written == entry.length]


def check(scheduler: Scheduler[Job], memory: Allocator, batch: list[tuple[Job, int]]) -> None:
    running, waiting = scheduler.running, scheduler.waiting
    assert len(running) <= scheduler.slots
    read = sum(tokens for entry, tokens in batch if not entry.writing)
    assert read <= (scheduler.mixed if any(entry.writing for entry, _ in batch) else scheduler.budget)
    order = [(-e.priority, e.arrival) for e in running + waiting]
    assert order == sorted(order)
    slots = [e.slot for e in running if e.slot is not None]
    owned = [page for slot in slots for page in memory.pages_of(slot)]
    assert len(set(slots)) == len(running)
    assert len(set(owned)) == len(owned) == memory.pages - memory.free_pages
    for entry, tokens in batch:
        assert entry in running
        assert entry.slot is not None
        assert memory.capacity(entry.slot) == entry.room >= entry.computed + tokens
        assert 1 <= tokens <= entry.known - entry.computed
    if running or waiting:
        oldest = (running + waiting)[0]
        assert batch[0][0] is oldest, "the first of the highest priority always goes on"


@settings(max_examples=300, deadline=None)
@given(
    jobs=jobs,
    slots=st.integers(1, 5),
    budget=st.integers(1, 25),
    page_size=st.integers(1, 8),
    spare=st.integers(0, 10),
    mixed=st.integers(1, 25),
)
def test_everybody_ends_and_nothing_is_lost(
    jobs: list[tuple[int, int, int, int, int, int]], slots: int, budget: int, page_size: int, spare: int, mixed: int
) -> None:
    entries = [job(i, draw) for i, draw in enumerate(jobs)]
    pages = max(-(-e.most // page_size) for e in entries) + spare
    mixed = min(mixed, budget)
    memory, scheduler = Allocator(slots, pages, page_size), Scheduler[Job](slots, budget, mixed)
    scheduler.memory = memory
    todo, ended, step = sorted(entries, key=lambda e: e.comes), [], 0
    while todo or scheduler.waiting or scheduler.running:
        while todo and todo[0].comes <= step:
            scheduler.add(todo.pop(0))
        for entry in entries:
            if entry.arrival >= 0 and step >= entry.comes + entry.leaves and entry not in ended:
                scheduler.remove(entry)
                ended.append(entry)
        batch = scheduler.schedule()
        check(scheduler, memory, batch)
        for entry in advance(scheduler, batch):
            scheduler.remove(entry)
            ended.append(entry)
        step += 1
        # Even if each ran by itself, and began again at every token.
        assert step <= 40 + sum((e.most // mixed + 2) * e.length for e in entries) * (1 + len(entries))
    assert len(ended) == len(entries)
    assert (memory.free_slots, memory.free_pages) == (slots, pages)


def test_pages_are_taken_as_tokens_are_written_and_the_last_to_come_gives_way() -> None:
    memory, scheduler = Allocator(3, 4, 4), Scheduler[Job](3, 100)
    scheduler.memory = memory
    first, second = (Job(prompt_tokens=4, max_new_tokens=12, name=i, length=12) for i in range(2))
    scheduler.add(first)
    scheduler.add(second)
    assert scheduler.schedule() == [(first, 4), (second, 4)]
    assert memory.free_pages == 2, "nothing is reserved for what is not yet written"
    advance(scheduler, [(first, 4), (second, 4)])
    for _ in range(4):
        batch = scheduler.schedule()
        assert [tokens for _, tokens in batch] == [1, 1]
        advance(scheduler, batch)
    assert memory.free_pages == 0
    assert scheduler.schedule() == [(first, 1)]
    assert (scheduler.waiting, second.slot, second.computed, second.written) == ([second], None, 0, 5)
    advance(scheduler, [(first, 1)])
    while first.written < first.length:
        assert [entry for entry, _ in scheduler.schedule()] == [first]
        advance(scheduler, [(first, 1)])
    scheduler.remove(first)
    assert scheduler.schedule() == [(second, 9)], "the prompt and what was written, anew"


def test_a_prompt_is_not_begun_beside_one_that_needs_the_pages() -> None:
    memory, scheduler = Allocator(2, 10, 1), Scheduler[Job](2, 3)
    scheduler.memory = memory
    first, second = (Job(prompt_tokens=6, max_new_tokens=2, length=2) for _ in range(2))
    scheduler.add(first)
    scheduler.add(second)
    assert scheduler.schedule() == [(first, 3)]
    assert memory.free_pages == 7
    assert scheduler.waiting == [second]


def reading(*prompts: int, budget: int = 100, slots: int = 5) -> tuple[Scheduler[Job], list[Job]]:
    scheduler = Scheduler[Job](slots, budget)
    scheduler.memory = Allocator(slots, 1000, 1)
    entries = [Job(prompt_tokens=prompt, max_new_tokens=5, name=i, length=5) for i, prompt in enumerate(prompts)]
    for entry in entries:
        scheduler.add(entry)
    return scheduler, entries


def test_a_short_prompt_does_not_wait_for_a_long_one_which_is_read_all_the_same() -> None:
    scheduler, (long, short, middle) = reading(900, 20, 70)
    assert scheduler.schedule() == [(long, 50), (short, 20), (middle, 30)]
    advance(scheduler, scheduler.schedule())
    assert scheduler.schedule() == [(long, 60), (short, 1), (middle, 40)]


def test_prompts_of_a_kind_are_read_one_after_the_other() -> None:
    scheduler, (first, second, third) = reading(80, 80, 80)
    assert scheduler.schedule() == [(first, 80), (second, 20)]
    advance(scheduler, scheduler.schedule())
    assert scheduler.schedule() == [(first, 1), (second, 60), (third, 40)]


def test_fewer_tokens_are_read_while_others_write() -> None:
    scheduler, (first, second) = reading(80, 90)
    scheduler.mixed = 10
    advance(scheduler, scheduler.schedule())
    assert scheduler.schedule() == [(first, 1), (second, 10)]
    scheduler.remove(first)
    assert scheduler.schedule() == [(second, 70)]


def test_a_higher_priority_goes_first_and_in_place_of_a_lower_one() -> None:
    scheduler, (low, lower) = reading(10, 10, slots=2)
    lower.priority = -1
    advance(scheduler, scheduler.schedule())
    urgent, usual = (Job(prompt_tokens=4, max_new_tokens=5, length=5, priority=p) for p in (3, 0))
    scheduler.add(usual)
    scheduler.add(urgent)
    assert scheduler.schedule() == [(urgent, 4), (low, 1)]
    assert scheduler.waiting == [usual, lower], "of its own priority nobody gives way"
    scheduler.remove(low)
    assert scheduler.schedule() == [(urgent, 4), (usual, 4)]


def test_those_that_are_to_run_alone_do() -> None:
    memory, scheduler = Allocator(3, 9, 4), Scheduler[Job](3, 100)
    scheduler.memory = memory
    entries = [Job(prompt_tokens=4, max_new_tokens=5, name=i, length=5) for i in range(3)]
    for entry in entries:
        scheduler.add(entry)
    advance(scheduler, scheduler.schedule())
    for entry in entries[:2]:
        entry.alone = True
        scheduler.preempt(entry)
    assert scheduler.waiting == entries[:2]
    for entry in entries[:2]:
        batch = scheduler.schedule()
        assert batch == [(entry, 5)]
        advance(scheduler, batch)
    assert scheduler.schedule() == [(entry, 1) for entry in entries]


@pytest.mark.parametrize("where", ["waiting", "running", "nowhere"])
def test_removing_is_harmless(where: str) -> None:
    memory, scheduler = Allocator(1, 2, 4), Scheduler[Job](1, 8)
    scheduler.memory = memory
    entry = Job(prompt_tokens=4, max_new_tokens=4)
    if where != "nowhere":
        scheduler.add(entry)
    if where == "running":
        scheduler.schedule()
        assert scheduler.running == [entry]
    for _ in range(2):
        scheduler.remove(entry)
        assert (scheduler.waiting, scheduler.running, memory.free_slots, memory.free_pages) == ([], [], 1, 2)
