"""Who holds which slots and pages of a cache, as plain numbers."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence


class CacheFull(RuntimeError):
    """No free slot or not enough free pages; release a sequence, or build a larger cache."""


class Numbers:
    """The numbers 0 to `count`, taken from the lowest and given back in any order; nothing is kept of those untaken."""

    def __init__(self, count: int) -> None:
        self._count, self._fresh = count, 0  # numbers from `_fresh` on were never taken
        self._returned: list[int] = []

    def __len__(self) -> int:
        """How many are free."""
        return self._count - self._fresh + len(self._returned)

    def take(self) -> int:
        """The lowest free one. Raises IndexError if there is none."""
        if self._returned:
            return heapq.heappop(self._returned)
        if self._fresh == self._count:
            raise IndexError("none is free")
        self._fresh += 1
        return self._fresh - 1

    def give_back(self, number: int) -> None:
        heapq.heappush(self._returned, number)


class Allocator:
    """Slots, each with the pages of its sequence in order, and how many hold each page.

    A page is free when nobody holds it any more: several slots may share a page (`share`), and something that is no
    slot may hold pages too (`retain`, `drop`), such as a prefix that is kept for later.

    Args:
        slots, pages: how many there are.
        page_size: tokens of a page.

    Raises:
        ValueError: if one of them is below 1, and wherever a slot that is not in use or a free page is named.
    """

    def __init__(self, slots: int, pages: int, page_size: int) -> None:
        if slots < 1 or pages < 1 or page_size < 1:
            raise ValueError(f"slots, pages and page_size must be at least 1; got {slots}, {pages}, {page_size}")
        self.slots, self.pages, self.page_size = slots, pages, page_size
        self._slots, self._pages = Numbers(slots), Numbers(pages)
        self._owned: dict[int, list[int]] = {}
        self._slots_on: Counter[int] = Counter()  # how many slots hold a page
        self._kept: Counter[int] = Counter()  # and how often it is held besides
        self._idle = 0

    @property
    def free_slots(self) -> int:
        return len(self._slots)

    @property
    def free_pages(self) -> int:
        return len(self._pages)

    @property
    def idle_pages(self) -> int:
        """Pages that no slot holds, but something else does: they would be free if it dropped them."""
        return self._idle

    def capacity(self, slot: int) -> int:
        """Tokens that fit into the pages of `slot`."""
        return len(self.pages_of(slot)) * self.page_size

    def pages_of(self, slot: int) -> list[int]:
        """The pages of `slot`, in the order of its tokens."""
        if slot not in self._owned:
            raise ValueError(f"cache slot {slot} is not in use: never acquired, or already released")
        return self._owned[slot]

    def acquire(self) -> int:
        """Take a free slot, which has no pages. Raises CacheFull if every slot is in use."""
        if not self._slots:
            raise CacheFull(f"all {self.slots} cache slots are in use; release a sequence first")
        slot = self._slots.take()
        self._owned[slot] = []
        return slot

    def reserve(self, slot: int, tokens: int) -> list[int]:
        """Make room for `tokens` tokens in all in `slot`. Returns the pages that are new.

        Raises:
            CacheFull: if too few pages are free; the slot then keeps what it had.
        """
        owned = self.pages_of(slot)
        missing = -(-tokens // self.page_size) - len(owned)
        if missing <= 0:
            return []
        if missing > len(self._pages):
            raise CacheFull(
                f"{tokens} tokens need {missing} more pages of {self.page_size} tokens but {len(self._pages)} of "
                f"{self.pages} are free; release a sequence or build the cache with more pages"
            )
        new = [self._pages.take() for _ in range(missing)]
        self._slots_on.update(new)
        owned += new
        return new

    def share(self, slot: int, pages: Sequence[int], tokens: int) -> list[int]:
        """Let `slot`, which has no pages yet, begin with the first `tokens` tokens of pages that others hold.

        Pages that are full of them it holds too: nobody writes to those. If the last one is not, the slot takes a new
        page in its place, into which what it holds has to be copied.

        Returns:
            the new page, or none.

        Raises:
            CacheFull: if there is no page for that copy; the slot then has none.
        """
        if self.pages_of(slot):
            raise ValueError(f"cache slot {slot} has pages already: share before anything is reserved")
        full, rest = divmod(tokens, self.page_size)
        if len(pages) != full + bool(rest):
            raise ValueError(f"{tokens} tokens lie in {full + bool(rest)} pages, not in {len(pages)}")
        self._check_held(pages)
        if rest and not self.free_pages:
            raise CacheFull("no page is free for a copy of the one that the prefix ends in; release a sequence first")
        for page in pages[:full]:
            self._idle -= not self._slots_on[page]
            self._slots_on[page] += 1
        self._owned[slot] += pages[:full]
        return self.reserve(slot, tokens)

    def retain(self, pages: Sequence[int]) -> None:
        """Hold pages that somebody holds once more."""
        self._check_held(pages)
        self._kept.update(pages)

    def drop(self, pages: Sequence[int]) -> None:
        """Hold pages once less, that `retain` has held."""
        for page in pages:
            if not self._kept[page]:
                raise ValueError(f"page {page} is not kept: it is free already, or held by slots alone")
            self._kept[page] -= 1
            if not self._kept[page] and not self._slots_on[page]:
                self._idle -= 1
                self._free(page)

    def pin(self, pages: Sequence[int]) -> None:
        """Hold pages that `retain` has held as a slot does: they are not idle. The last one need not be full."""
        self._check_held(pages)
        for page in pages:
            self._idle -= not self._slots_on[page]
            self._slots_on[page] += 1

    def unpin(self, pages: Sequence[int]) -> None:
        """Undo one `pin`."""
        for page in pages:
            self._slots_on[page] -= 1
            if not self._slots_on[page]:
                if self._kept[page]:
                    self._idle += 1
                else:
                    self._free(page)

    def in_slots(self, pages: Sequence[int]) -> int:
        """How many of them slots hold, or are pinned."""
        return sum(self._slots_on[page] > 0 for page in pages)

    def is_kept(self, page: int) -> bool:
        """Whether something besides slots holds it."""
        return self._kept[page] > 0

    def last_held(self, pages: Sequence[int]) -> bool:
        """Whether one of them would be free if they were dropped."""
        return any(self._kept[page] == 1 and not self._slots_on[page] for page in pages)

    def release(self, slot: int) -> None:
        """Give back a slot, and its pages: those that nobody holds any more are free."""
        self.unpin(self.pages_of(slot))
        del self._owned[slot]
        self._slots.give_back(slot)

    def _free(self, page: int) -> None:
        del self._slots_on[page], self._kept[page]
        self._pages.give_back(page)

    def _check_held(self, pages: Sequence[int]) -> None:
        free = [page for page in pages if not self._slots_on[page] and not self._kept[page]]
        if free:
            raise ValueError(f"pages {free} are free: what they held is gone")
