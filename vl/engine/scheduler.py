"""Which requests run in the next step, and how many tokens of each: plain data, without tensors or a model.

First come, first served. A request that is admitted has a slot; it takes pages as its tokens are written. When pages
run out, the one that came last gives all of its own back and begins again later, from the tokens known by then: so the
one that came first always goes on, and all come to their end. The one that is left alone and still lacks pages waits,
too: for a larger memory.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from text_backbone import CacheFull


class Memory(Protocol):
    """What is handed out: a `text_backbone.HybridCache`, or the `Allocator` in it."""

    page_size: int

    @property
    def free_pages(self) -> int: ...
    @property
    def idle_pages(self) -> int: ...
    def capacity(self, slot: int) -> int: ...
    def acquire(self) -> int: ...
    def reserve(self, slot: int, tokens: int) -> object: ...
    def release(self, slot: int) -> None: ...


@dataclass(eq=False, kw_only=True)
class Entry:
    """What the scheduler knows of a request.

    Attributes:
        prompt_tokens, max_new_tokens: given by the caller.
        written: tokens generated so far.
        computed: of the tokens known, those that are in the cache.
        slot: while it runs.
        room: tokens that fit into the pages of its slot.
        alone: run it by itself until it has written a token: a step that it shared has failed.
        arrival: its number in the order of coming.
    """

    prompt_tokens: int
    max_new_tokens: int
    written: int = 0
    computed: int = 0
    slot: int | None = None
    room: int = 0
    alone: bool = False
    arrival: int = -1

    @property
    def known(self) -> int:
        """Tokens of the prompt and those written."""
        return self.prompt_tokens + self.written

    @property
    def upcoming(self) -> int:
        """Tokens in the cache once the next one to be written is read too, which the last one never is."""
        return min(self.known + 1, self.most)

    @property
    def most(self) -> int:
        """Tokens that it ever has in the cache."""
        return self.prompt_tokens + self.max_new_tokens - 1

    @property
    def writing(self) -> bool:
        """Whether only the token written last is to be read."""
        return self.written > 0 and self.prompt_tokens + self.written - self.computed == 1


E = TypeVar("E", bound=Entry)
E_contra = TypeVar("E_contra", bound=Entry, contravariant=True)


class Beginnings(Protocol[E_contra]):
    """What is kept of earlier sequences: `vl.engine.prefix.Prefixes`. It holds the memory's idle pages."""

    def shared_pages(self, entry: E_contra) -> int: ...
    def begin(self, entry: E_contra) -> None: ...
    def evict(self) -> bool: ...


class NoBeginnings:
    """Every sequence is read from its first token on."""

    def shared_pages(self, entry: Entry) -> int:
        return 0

    def begin(self, entry: Entry) -> None: ...

    def evict(self) -> bool:
        return False


_arrival = attrgetter("arrival")


class Scheduler(Generic[E]):
    """Requests waiting and running, both in the order of coming.

    Args:
        slots: requests that run at once.
        budget: tokens of prompts that are read in a step; tokens being written do not count.

    Attributes:
        memory: slots and pages; None only while nothing runs.
        beginnings: what is kept in that memory for those that begin the same way.
    """

    def __init__(self, slots: int, budget: int) -> None:
        self.slots, self.budget = slots, budget
        self.memory: Memory | None = None
        self.beginnings: Beginnings[E] = NoBeginnings()
        self.waiting: list[E] = []
        self.running: list[E] = []
        self._arrivals = 0

    def add(self, entry: E) -> None:
        """Let `entry` wait for its turn."""
        entry.arrival, self._arrivals = self._arrivals, self._arrivals + 1
        self.waiting.append(entry)

    def remove(self, entry: E) -> None:
        """Forget `entry`, wherever it is; harmless when it is nowhere."""
        _take_out(entry, self.waiting)
        self._stop(entry)

    def preempt(self, entry: E) -> None:
        """Take slot and pages from `entry`, which waits again for its turn, to be computed anew."""
        if self._stop(entry):
            insort(self.waiting, entry, key=_arrival)

    def schedule(self) -> list[tuple[E, int]]:
        """Admit what fits. Returns who runs in the next step and how many tokens of each; they have pages for them."""
        while self._admit():
            pass
        alone = [entry for entry in self.running if entry.alone]
        batch: list[tuple[E, int]] = []
        budget = self.budget
        for entry in alone[:1] or list(self.running):
            if entry.slot is None:
                continue  # it was preempted for one before it
            writing = entry.writing
            tokens = 1 if writing else min(budget, entry.known - entry.computed)
            needed = entry.computed + tokens
            if tokens and (needed <= entry.room or self._make_room(entry, entry.slot, needed)):
                batch.append((entry, tokens))
                budget -= 0 if writing else tokens
        return batch

    def _make_room(self, entry: E, slot: int, tokens: int) -> bool:
        """Pages for `tokens` tokens of `entry`: free ones, or what is kept for later gives way, or the last to come.

        False if that is `entry` itself.
        """
        assert self.memory is not None
        while True:
            try:
                self.memory.reserve(slot, tokens)
            except CacheFull:
                if self.beginnings.evict():
                    continue
                last = self.running[-1]
                self.preempt(last)
                if last is entry:
                    return False
            else:
                entry.room = self.memory.capacity(slot)
                return True

    def _admit(self) -> bool:
        """Start the first of the waiting if a slot is free, and pages for all that it and the running ones know.

        So a prompt that is begun can be read to its end; only what is written then may come to want pages.
        """
        memory = self.memory
        if memory is None or not self.waiting or len(self.running) == self.slots:
            return False
        entry = self.waiting[0]
        promised = sum(self._missing(other) for other in self.running)
        lacking = self._missing(entry) + promised - memory.free_pages - memory.idle_pages
        if lacking > 0 and lacking > self.beginnings.shared_pages(entry):
            return False
        del self.waiting[0]
        entry.slot = memory.acquire()
        insort(self.running, entry, key=_arrival)
        self.beginnings.begin(entry)
        return True

    def _missing(self, entry: E) -> int:
        """Pages that `entry` lacks for its next token too."""
        assert self.memory is not None
        return max(0, -(-(entry.upcoming - entry.room) // self.memory.page_size))

    def _stop(self, entry: E) -> bool:
        """End the running of `entry`; False if it does not run."""
        if not _take_out(entry, self.running):
            return False
        assert self.memory is not None
        assert entry.slot is not None
        self.memory.release(entry.slot)
        entry.slot, entry.room, entry.computed = None, 0, 0
        return True


def _take_out(entry: E, entries: list[E]) -> bool:
    """Remove `entry` from a list that is in the order of coming; False if it is not there."""
    at = bisect_left(entries, entry.arrival, key=_arrival)
    if at == len(entries) or entries[at] is not entry:
        return False
    del entries[at]
    return True
