"""Who holds which slots and pages of a cache, as plain numbers."""

from __future__ import annotations

import heapq
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
        self._holders: dict[int, int] = {}  # of each page that is not free

    @property
    def free_slots(self) -> int:
        return len(self._slots)

    @property
    def free_pages(self) -> int:
        return len(self._pages)

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
        self._holders |= dict.fromkeys(new, 1)
        owned += new
        return new

    def share(self, slot: int, pages: Sequence[int]) -> None:
        """Let `slot`, which has no pages yet, begin with pages that others hold: full ones, which nobody writes to."""
        if self.pages_of(slot):
            raise ValueError(f"cache slot {slot} has pages already: share before anything is reserved")
        self.retain(pages)
        self._owned[slot] += pages

    def retain(self, pages: Sequence[int]) -> None:
        """Hold pages that somebody holds once more."""
        free = [page for page in pages if page not in self._holders]
        if free:
            raise ValueError(f"pages {free} are free: what they held is gone")
        for page in pages:
            self._holders[page] += 1

    def drop(self, pages: Sequence[int]) -> None:
        """Hold pages once less; those that nobody holds any more are free."""
        for page in pages:
            if page not in self._holders:
                raise ValueError(f"page {page} is free already")
            self._holders[page] -= 1
            if not self._holders[page]:
                del self._holders[page]
                self._pages.give_back(page)

    def release(self, slot: int) -> None:
        """Give back a slot, and drop its pages."""
        self.drop(self.pages_of(slot))
        del self._owned[slot]
        self._slots.give_back(slot)
