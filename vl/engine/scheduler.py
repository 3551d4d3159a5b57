"""Which requests run in the next step, and how many tokens of each: plain data, without tensors or a model.

Those of the highest priority first, and of these first come, first served. A request that is admitted has a slot; it
takes pages as its tokens are written. When pages run out, the last in that order gives all of its own back and begins
again later, from the tokens known by then: so the first always goes on, and all come to their end. The one that is left
alone and still lacks pages waits, too: for a larger memory.

Of the tokens of prompts that a step may read the first has half, as far as it needs them. The others are for whoever is
nearest to its end: a short prompt does not wait for a long one, and the longest is read all the same.

When a step has run out of memory, the next ones read and run less at once, and more again after many that went well.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from text_backbone import CacheFull

LEAST = 16  # tokens of prompts that are read in a step, however little memory there is
_CALM = 64  # steps that went well, after which as much is tried again as before


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
        priority: those with a higher one go first, and in place of those with a lower one.
        alone: run it by itself until it has written a token: a step that it shared has failed.
        arrival: its number in the order of coming.
    """

    prompt_tokens: int
    max_new_tokens: int
    written: int = 0
    computed: int = 0
    slot: int | None = None
    room: int = 0
    priority: int = 0
    alone: bool = False
    arrival: int = -1

    @property
    def known(self) -> int:
        """Tokens of the prompt and those written."""
        return self.prompt_tokens + self.written

    @property
    def unread(self) -> int:
        return self.known - self.computed

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
        return self.written > 0 and self.unread == 1


E = TypeVar("E", bound=Entry)
E_contra = TypeVar("E_contra", bound=Entry, contravariant=True)


class Beginnings(Protocol[E_contra]):
    """What is kept of earlier sequences: `vl.engine.prefix.Prefixes`. It holds the memory's idle pages."""

    def awaits(self, entry: E_contra, running: Sequence[E_contra]) -> bool: ...
    def shared_pages(self, entry: E_contra) -> int: ...
    def begin(self, entry: E_contra) -> None: ...
    def keep(self, entry: E_contra) -> None: ...
    def evict(self) -> bool: ...


class NoBeginnings:
    """Every sequence is read from its first token on."""

    def awaits(self, entry: Entry, running: Sequence[Entry]) -> bool:
        return False

    def shared_pages(self, entry: Entry) -> int:
        return 0

    def begin(self, entry: Entry) -> None: ...

    def keep(self, entry: Entry) -> None: ...

    def evict(self) -> bool:
        return False


def rank(entry: Entry) -> tuple[int, int]:
    """Lower goes first."""
    return -entry.priority, entry.arrival


class Scheduler(Generic[E]):
    """Requests waiting and running, both by priority and in the order of coming.

    Args:
        slots: requests that run at once.
        budget: tokens of prompts that are read in a step; tokens being written do not count.
        mixed: the same of a step in which answers are being written, which all wait for it; None: as many.

    Attributes:
        memory: slots and pages; None only while nothing runs.
        beginnings: what is kept in that memory for those that begin the same way.
        giving: to whom, if `schedule` failed while it gave out slots and pages.
    """

    def __init__(self, slots: int, budget: int, mixed: int | None = None) -> None:
        self.slots, self.budget = self._full = slots, budget
        self._calm = 0
        self.mixed = budget if mixed is None else mixed
        self.memory: Memory | None = None
        self.beginnings: Beginnings[E] = NoBeginnings()
        self.waiting: list[E] = []
        self.running: list[E] = []
        self.giving: E | None = None
        self._arrivals = 0

    def add(self, entry: E) -> None:
        """Let `entry` wait for its turn."""
        entry.arrival, self._arrivals = self._arrivals, self._arrivals + 1
        insort(self.waiting, entry, key=rank)

    def remove(self, entry: E) -> None:
        """Forget `entry`, wherever it is; harmless when it is nowhere."""
        _take_out(entry, self.waiting)
        self._stop(entry)

    def preempt(self, entry: E) -> None:
        """Take slot and pages from `entry`, which waits again for its turn, to be computed anew."""
        if self._stop(entry):
            insort(self.waiting, entry, key=rank)

    @property
    def shrunk(self) -> bool:
        """Whether less is done at once than could be."""
        return (self.slots, self.budget) != self._full

    def shrink(self, batch: Sequence[tuple[E, int]]) -> bool:
        """A step of `batch` has run out of memory: from now on read half as much at once, or else run half as many.

        False if there is nothing to halve.
        """
        read = sum(tokens for entry, tokens in batch if not entry.writing)
        if read > LEAST:
            self.budget = min(self.budget, max(LEAST, read // 2))
        elif len(batch) > 1:
            self.slots = min(self.slots, len(batch) // 2)
        else:
            return False
        self._calm = 0
        return True

    def recover(self) -> None:
        """Do as much at once as could be: what needed too much memory is gone."""
        self.slots, self.budget = self._full

    def went_well(self) -> None:
        """A step had memory enough."""
        self._calm += 1
        if self.shrunk and self._calm >= _CALM:
            slots, budget = self._full
            self.slots, self.budget, self._calm = min(slots, 2 * self.slots), min(budget, 2 * self.budget), 0

    def schedule(self) -> list[tuple[E, int]]:
        """Admit what fits. Returns who runs in the next step and how many tokens of each; they have pages for them."""
        while self._admit():
            pass
        alone = [entry for entry in self.running if entry.alone]
        chosen = alone[:1] or list(self.running)
        shares = self._shares(chosen)
        batch: list[tuple[E, int]] = []
        for entry in chosen:
            if entry.slot is None:
                continue  # it was preempted for one before it
            tokens = 1 if entry.writing else shares[entry]
            needed = entry.computed + tokens
            if tokens and (needed <= entry.room or self._make_room(entry, entry.slot, needed)):
                batch.append((entry, tokens))
        return batch

    def _shares(self, entries: Sequence[E]) -> dict[E, int]:
        """How many tokens each of those may read whose prompts, or whatever else they know, are not read yet."""
        readers = [entry for entry in entries if not entry.writing]
        shares = dict.fromkeys(readers, 0)
        left = self.budget if len(readers) == len(entries) else min(self.budget, self.mixed)
        if readers:
            shares[readers[0]] = min(readers[0].unread, -(-left // 2))
            left -= shares[readers[0]]
        for entry in sorted(readers, key=lambda entry: entry.unread - shares[entry]):
            more = min(entry.unread - shares[entry], left)
            shares[entry] += more
            left -= more
        return shares

    def _make_room(self, entry: E, slot: int, tokens: int) -> bool:
        """Pages for `tokens` tokens of `entry`: free ones, or what is kept for later gives way, or the last to come.

        False if that is `entry` itself.
        """
        assert self.memory is not None
        self.giving = entry
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
            except BaseException:  # it may have pages that the cache does not know of
                self.preempt(entry)
                raise
            else:
                self.giving, entry.room = None, self.memory.capacity(slot)
                return True

    def _admit(self) -> bool:
        """Start the first of the waiting if a slot is free, and pages for all that it and the running ones know.

        So a prompt that is begun can be read to its end; only what is written then may come to want pages. Those of a
        lower priority give way. One that is soon to find more of its beginning lets others go first.
        """
        memory = self.memory
        if memory is None or not self.waiting:
            return False
        if len(self.running) >= self.slots and self.running[-1].priority >= self.waiting[0].priority:
            return False
        waiting = (entry for entry in self.waiting if not self.beginnings.awaits(entry, self.running))
        entry = next(waiting, None)
        if entry is None:
            return False
        while len(self.running) >= self.slots or not self._fits(memory, entry):
            if not self.running or self.running[-1].priority >= entry.priority:
                return False
            self.beginnings.keep(self.running[-1])
            self.preempt(self.running[-1])
        self.giving = entry
        slot = memory.acquire()
        self.waiting.remove(entry)
        entry.slot = slot
        insort(self.running, entry, key=rank)
        try:
            self.beginnings.begin(entry)
        except BaseException:  # it may share pages by now, to which it must not write
            self.preempt(entry)
            raise
        self.giving = None
        return True

    def _fits(self, memory: Memory, entry: E) -> bool:
        promised = sum(self._missing(other) for other in self.running)
        lacking = self._missing(entry) + promised - memory.free_pages - memory.idle_pages
        return lacking <= 0 or lacking <= self.beginnings.shared_pages(entry)

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
    """Remove `entry` from a list that is in order; False if it is not there."""
    at = bisect_left(entries, rank(entry), key=rank)
    if at == len(entries) or entries[at] is not entry:
        return False
    del entries[at]
    return True
