"""What is kept of sequences that were read, so that the next one that begins the same way goes on from there.

A beginning is the first n tokens of a sequence. Kept of it are the lightning states after n tokens, on the host, at a
numbered place of the cache; and its pages of keys and values, which it holds along with the sequences that use them.
Both are given up for others, the longest unused first: places when all are taken, pages when sequences need them.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakSet

from text_backbone import CacheFull
from text_backbone.allocator import Numbers
from vl.engine.boundaries import LEAST
from vl.engine.scheduler import Entry

_WORTH_WAITING = 256  # tokens that another sequence is about to keep
_REMEMBERED = 256  # keys of what was given up, to tell why it is missed


@dataclass(eq=False)
class Held:
    """A beginning that is held for somebody until it is let go: nothing takes its place or its pages.

    Attributes:
        tokens: of it. `pages`: of its keys and values. `place`: where its states are.
        lost: why it is gone all the same; "" while it is there.
        users: requests that begin with it: until they are done, or nobody has them, it is not let go.
        wanted: whether it is held for more than those users.
    """

    tokens: int
    place: int
    pages: Sequence[int]
    lost: str = ""
    users: WeakSet[Any] = field(default_factory=WeakSet)
    wanted: bool = True


@dataclass(eq=False, kw_only=True)
class Sequenced(Entry):
    """An `Entry` whose tokens have keys.

    Attributes:
        boundaries: of its prompt, where a beginning is worth keeping; rising.
        kept: tokens of the longest beginning of it that was kept or found since it has its slot.
        cached_tokens: of its prompt, that were found when it first ran, and not read; None before.
        marks: of the next step: after how many of its tokens its states are kept, and at which place.
        siblings: those with the same one answer the same prompt, which one of them reads for all; None: it has none.
        after: what it begins with, of which nothing is read again; None leaves that to what is found.
    """

    boundaries: Sequence[int] = ()
    kept: int = 0
    cached_tokens: int | None = None
    marks: Sequence[tuple[int, int]] = ()
    siblings: object | None = None
    after: Held | None = None

    def key_at(self, tokens: int) -> bytes:
        """Names its first `tokens` tokens, images included."""
        raise NotImplementedError


class Pages(Protocol):
    """The part of a cache that this uses: `text_backbone.HybridCache` has it."""

    page_size: int

    @property
    def idle_pages(self) -> int: ...
    def capacity(self, slot: int) -> int: ...
    def pages_of(self, slot: int) -> Sequence[int]: ...
    def in_slots(self, pages: Sequence[int]) -> int: ...
    def last_held(self, pages: Sequence[int]) -> bool: ...
    def retain(self, pages: Sequence[int]) -> None: ...
    def drop(self, pages: Sequence[int]) -> None: ...
    def pin(self, pages: Sequence[int]) -> None: ...
    def unpin(self, pages: Sequence[int]) -> None: ...
    def share(self, slot: int, pages: Sequence[int], tokens: int) -> object: ...
    def keep(self, slot: int, place: int) -> None: ...
    def recall(self, slot: int, place: int) -> None: ...


@dataclass
class PrefixCounts:
    """Since the engine was made.

    Attributes:
        hits: prompts of which a beginning was found. tokens: of all prompts; cached: of those, that were found.
        misses: other prompts by cause: "new" (nothing was kept that begins so), "evicted" (it was given up for
            others), "cleared" (the model has changed since), "off" (nothing is ever kept).
    """

    hits: int = 0
    tokens: int = 0
    cached: int = 0
    misses: Counter[str] = field(default_factory=Counter)


@dataclass(eq=False)
class _Beginning(Held):
    key: bytes = b""


class Prefixes:
    """The beginnings kept over one cache.

    Args:
        memory: the cache. Nobody else may `retain` its pages: those that no slot holds count as free.
        places: how many are kept at most; 0: none.
        counts: to count in.
    """

    def __init__(self, memory: Pages, places: int, counts: PrefixCounts) -> None:
        self.counts = counts
        self._memory, self._places, self._most = memory, Numbers(places), places
        self._kept: OrderedDict[bytes, _Beginning] = OrderedDict()  # the longest unused first
        self._lengths: Counter[int] = Counter()  # of those kept and those remembered
        self._rising: list[int] = []
        self._gone: OrderedDict[bytes, tuple[int, str]] = OrderedDict()
        self._held: list[Held] = []
        self._held_places = Numbers(2**30)  # from the last of the others on

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def places(self) -> int:
        """How many can be kept."""
        return self._most

    @property
    def free_places(self) -> int:
        return len(self._places)

    # Beginning with what was kept

    def awaits(self, entry: Sequenced, running: Sequence[Sequenced]) -> bool:
        """Whether one of `running` is reading what `entry` begins with, and will keep it: to wait is worth it then."""
        if not self._most:
            return False
        for other in running:
            due = other.boundaries[bisect_right(other.boundaries, other.computed) :]
            shared = (at for at in due if at in entry.boundaries and other.key_at(at) == entry.key_at(at))
            worth = 1 if entry.siblings and entry.siblings is other.siblings else _WORTH_WAITING
            most = max(shared, default=0)
            if most and most >= worth + next((found.tokens for found in self._found(entry)), 0):
                return True
        return False

    def shared_pages(self, entry: Sequenced) -> int:
        """Pages that `entry` need not take, as running sequences hold them anyway."""
        for found in self._found(entry):
            return self._memory.in_slots(found.pages[: found.tokens // self._memory.page_size])
        return 0

    def begin(self, entry: Sequenced) -> None:
        """Give `entry`, which has a slot without pages, the longest of its beginnings that was kept.

        The last token that it knows is left to be read, in any case: the next one is made from it.
        """
        assert entry.slot is not None
        entry.kept = 0
        for found in self._found(entry):
            if self._share(entry.slot, found):
                self._memory.recall(entry.slot, found.place)
                if isinstance(found, _Beginning):
                    self._kept.move_to_end(found.key)
                entry.computed = entry.kept = found.tokens
                entry.room = self._memory.capacity(entry.slot)
                break
        if entry.cached_tokens is None:
            entry.cached_tokens = min(entry.computed, entry.prompt_tokens)
            self._count(entry, entry.cached_tokens)

    def _found(self, entry: Sequenced) -> Iterator[Held]:
        """What is kept of it, the longest first."""
        if entry.after is not None:
            if not entry.after.lost:
                yield entry.after
            return
        if not self._kept:
            return
        for tokens in reversed(self._rising[: bisect_right(self._rising, entry.known - 1)]):
            found = self._kept.get(entry.key_at(tokens))
            if found is not None:
                yield found

    def _share(self, slot: int, found: Held) -> bool:
        """False if there is no page for a copy of its last one, not even in place of another beginning."""
        while True:
            try:
                self._memory.share(slot, found.pages, found.tokens)
            except CacheFull:
                if not self.evict(spare=found):
                    return False
            else:
                return True

    def _count(self, entry: Sequenced, cached: int) -> None:
        self.counts.tokens += entry.prompt_tokens
        self.counts.cached += cached
        if cached:
            self.counts.hits += 1
        elif not self._most:
            self.counts.misses["off"] += 1
        else:
            known = self._rising[: bisect_right(self._rising, entry.known - 1)]
            causes = (self._gone.get(entry.key_at(tokens)) for tokens in reversed(known))
            self.counts.misses[next((cause for _, cause in filter(None, causes)), "new")] += 1

    # Keeping

    @contextmanager
    def marking(self, batch: Sequence[tuple[Sequenced, int]]) -> Iterator[None]:
        """A block that reads the next tokens of each of `batch`, and keeps states at its `marks`.

        Unless it fails, the sequences' beginnings up to there are kept then.
        """
        due = {entry.key_at(at): (entry, at) for entry, tokens in batch for at in self._due(entry, tokens)}
        new = [(key, place, *due[key]) for key, place in self._places_for(due)]
        for _, place, entry, at in new:
            entry.marks = [*entry.marks, (at - entry.computed, place)]
        try:
            yield
        except BaseException:
            for _, place, _, _ in new:
                self._places.give_back(place)
            raise
        else:
            for key, place, entry, at in new:
                self._add(entry, key, at, place)
        finally:
            for _, _, entry, _ in new:
                entry.marks = ()

    def _due(self, entry: Sequenced, tokens: int) -> Sequence[int]:
        """The boundaries that `entry` comes to with its next tokens."""
        first, last = (bisect_right(entry.boundaries, at) for at in (entry.computed, entry.computed + tokens))
        return [at for at in entry.boundaries[first:last] if entry.key_at(at) not in self._kept]

    def _places_for(self, keys: Collection[bytes]) -> Iterator[tuple[bytes, int]]:
        """Places for as many of them as there can be, none of which is given up for another of them."""
        for key in list(keys)[: self._most]:
            if not self._places:
                if not self._kept:
                    return
                self._give_up(next(iter(self._kept.values())))
            yield key, self._places.take()

    def keep(self, entry: Sequenced) -> None:
        """Keep all that `entry` has read, if that is worth it; it goes on with a slot, or is about to lose it."""
        if entry.slot is None or entry.after is not None or entry.computed - entry.kept < LEAST:
            return
        key = entry.key_at(entry.computed)
        if key in self._kept:
            return
        for _, place in self._places_for([key]):
            try:
                self._memory.keep(entry.slot, place)
            except BaseException:
                self._places.give_back(place)
                raise
            self._add(entry, key, entry.computed, place)

    def _add(self, entry: Sequenced, key: bytes, tokens: int, place: int) -> None:
        assert entry.slot is not None
        pages = tuple(self._memory.pages_of(entry.slot)[: -(-tokens // self._memory.page_size)])
        self._memory.retain(pages)
        self._forget(key)
        self._kept[key] = _Beginning(tokens, place, pages, key=key)
        self._count_length(tokens, 1)
        entry.kept = tokens

    # Holding

    @property
    def held(self) -> Sequence[Held]:
        """What is held, in the order of coming."""
        return tuple(self._held)

    def hold(self, slot: int, tokens: int, held: Held | None = None) -> Held:
        """Hold the first `tokens` tokens of a sequence, which are all that it has read.

        Args:
            held: what is to stand for them, if they were held elsewhere before.
        """
        place = self._most + self._held_places.take()
        try:
            self._memory.keep(slot, place)
        except BaseException:
            self._held_places.give_back(place - self._most)
            raise
        pages = tuple(self._memory.pages_of(slot)[: -(-tokens // self._memory.page_size)])
        self._memory.retain(pages)
        self._memory.pin(pages)
        held = held or Held(tokens, place, pages)
        held.place, held.pages = place, pages
        self._held.append(held)
        return held

    def pages_beside(self, after: Held | None, staying: bool = False) -> int:
        """Pages that are held, but for those that a sequence after one of the held need not take itself.

        Args:
            staying: count what is held for as long as somebody wants, and not what goes with the requests that use it.
        """
        own = () if after is None else after.pages[: after.tokens // self._memory.page_size]
        holding = [held for held in tuple(self._held) if held.wanted or not staying]
        return len({page for held in holding for page in held.pages}.difference(own))

    def let_go(self, held: Held) -> None:
        """Hold it no more; harmless if it is not held here."""
        if held in self._held:
            self._held.remove(held)
            self._memory.unpin(held.pages)
            self._memory.drop(held.pages)
            self._held_places.give_back(held.place - self._most)

    def lose(self, reason: str) -> None:
        """Let all go that is held, which says from now on that it is lost, and why."""
        for held in self.held:
            self.let_go(held)
            held.lost = reason

    # Giving up

    def evict(self, spare: Held | None = None) -> bool:
        """Give up the longest unused beginning that sets a page free. False if none does."""
        if not self._memory.idle_pages:
            return False
        others = [kept for kept in self._kept.values() if kept is not spare]
        alone = (kept for kept in others if self._memory.last_held(kept.pages))
        victim = next(alone, others[0] if others else None)  # pages may be held by several, and by no slot
        if victim is None:
            return False
        self._give_up(victim)
        return True

    def clear(self, cause: str = "cleared") -> None:
        """Give up all: what was kept is not what the model would compute now."""
        while self._kept:
            self._give_up(next(iter(self._kept.values())), cause)

    def _give_up(self, kept: _Beginning, cause: str = "evicted") -> None:
        del self._kept[kept.key]
        self._memory.drop(kept.pages)
        self._places.give_back(kept.place)
        self._gone[kept.key] = kept.tokens, cause
        if len(self._gone) > _REMEMBERED:
            self._forget(next(iter(self._gone)))

    def _forget(self, key: bytes) -> None:
        """What was given up under this key, if anything was."""
        gone = self._gone.pop(key, None)
        if gone is not None:
            self._count_length(gone[0], -1)

    def _count_length(self, tokens: int, change: int) -> None:
        self._lengths[tokens] += change
        if change > 0 and self._lengths[tokens] == 1:
            insort(self._rising, tokens)
        elif not self._lengths[tokens]:
            del self._lengths[tokens]
            self._rising.remove(tokens)
