"""What a sequence leaves behind: one fixed-size state per lightning layer, paged keys and values per softmax layer."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from text_backbone.config import LIGHTNING, TextConfig
from text_backbone.packed import Packed


class CacheFull(RuntimeError):
    """No free slot or not enough free pages; release a sequence, or build a larger cache."""


@dataclass(frozen=True)
class PagedKV:
    """The pages of one softmax layer as one forward pass sees them.

    Attributes:
        keys, values: [pages, page_size, kv_heads, d].
        page_table: int32 [slots, pages], page that holds tokens `[i * page_size, (i + 1) * page_size)` of a slot.
        rows: int64 [T], row of each new token in the pages flattened to [pages * page_size].
    """

    keys: Tensor
    values: Tensor
    page_table: Tensor
    rows: Tensor


class HybridCache:
    """Cache of a hybrid decoder, shared by up to `slots` sequences.

    A sequence owns one slot: a `[heads, d, d]` float32 state per lightning layer, whatever its length, and as many
    pages of `page_size` tokens as it has reserved, the same page numbers in every softmax layer.

    Args:
        scratch: have one slot and one page more, which no sequence can acquire: for rows that only fill a batch up.

    Attributes:
        states: float32 [lightning_layers, slots, heads, d, d].
        keys, values: `dtype` [softmax_layers, pages, page_size, kv_heads, d].
        page_table: int32 [slots, pages]; entries beyond a slot's reserved pages mean nothing.
        scratch_slot: it owns one page, and several rows of a batch may name it; what it holds means nothing.
    """

    def __init__(
        self,
        config: TextConfig,
        *,
        slots: int,
        pages: int,
        page_size: int = 256,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        scratch: bool = False,
    ) -> None:
        if slots < 1 or pages < 1 or page_size < 1:
            raise ValueError(f"slots, pages and page_size must be at least 1; got {slots}, {pages}, {page_size}")
        kinds = config.attn_type_list
        lightning = sum(kind == LIGHTNING for kind in kinds)
        d = config.head_dim
        self.page_size, self.slots, self.pages = page_size, slots, pages
        self.states = torch.zeros(
            lightning, slots + scratch, config.num_attention_heads, d, d, dtype=torch.float32, device=device
        )
        kv_shape = (len(kinds) - lightning, pages + scratch, page_size, config.num_key_value_heads, d)
        self.keys = torch.zeros(kv_shape, dtype=dtype, device=device)
        self.values = torch.zeros(kv_shape, dtype=dtype, device=device)
        self.page_table = torch.zeros(slots + scratch, pages, dtype=torch.int32, device=device)
        self._kinds = kinds
        self._free_slots = list(range(slots))
        self._free_pages = list(range(pages))
        self._owned: dict[int, list[int]] = {}
        self.scratch_slot: int | None = None
        if scratch:
            self.scratch_slot, self._owned[slots] = slots, [pages]
            self.page_table[slots].fill_(pages)

    @property
    def free_slots(self) -> int:
        return len(self._free_slots)

    @property
    def free_pages(self) -> int:
        return len(self._free_pages)

    def capacity(self, slot: int) -> int:
        """Tokens that `slot` may hold with the pages it owns."""
        return len(self._pages_of(slot)) * self.page_size

    def acquire(self) -> int:
        """Take a free slot, its states zeroed and no pages owned.

        Raises:
            CacheFull: if every slot is in use.
        """
        if not self._free_slots:
            raise CacheFull(f"all {self.slots} cache slots are in use; release a sequence first")
        slot = heapq.heappop(self._free_slots)
        self._owned[slot] = []
        self.states[:, slot].zero_()
        return slot

    def reserve(self, slot: int, tokens: int) -> None:
        """Make room for `tokens` tokens in all in `slot`, those it already holds included.

        Raises:
            CacheFull: if too few pages are free; the slot then keeps what it had.
            ValueError: if the slot is not in use.
        """
        owned = self._pages_of(slot)
        held = len(owned)
        missing = -(-tokens // self.page_size) - held
        if missing <= 0:
            return
        if missing > len(self._free_pages):
            raise CacheFull(
                f"{tokens} tokens need {missing} more pages of {self.page_size} tokens but {len(self._free_pages)} of "
                f"{self.pages} are free; release a sequence or build the cache with more pages"
            )
        owned.extend(heapq.heappop(self._free_pages) for _ in range(missing))
        self.page_table[slot, held : held + missing] = torch.tensor(
            owned[held:], dtype=torch.int32, device=self.page_table.device
        )

    def release(self, slot: int) -> None:
        """Give back a slot and its pages.

        Raises:
            ValueError: if the slot is not in use, for instance because it was released before.
        """
        for page in self._pages_of(slot):
            heapq.heappush(self._free_pages, page)
        del self._owned[slot]
        heapq.heappush(self._free_slots, slot)

    def layers(self, packed: Packed) -> Iterator[Tensor | PagedKV]:
        """What each decoder layer reads and writes for `packed`: its states [slots, heads, d, d] or its `PagedKV`.

        For single tokens nothing on the device comes from lengths that the host knows: a CUDA graph may capture it.

        Raises:
            ValueError: if a sequence's slot is not in use or has too few pages for its tokens.
        """
        self.check(packed)
        return self._views(self._rows(packed))

    def check(self, packed: Packed) -> None:
        """Raise the ValueError of `layers`."""
        for slot, past, length in zip(packed.slot_ids, packed.pasts, packed.lengths, strict=True):
            if self.capacity(slot) < past + length:
                raise ValueError(
                    f"slot {slot} has room for {self.capacity(slot)} tokens but its sequence comes to {past + length}; "
                    f"call reserve({slot}, {past + length}) first"
                )

    def _views(self, rows: Tensor) -> Iterator[Tensor | PagedKV]:
        states, pages = iter(self.states), zip(self.keys, self.values, strict=True)
        for kind in self._kinds:
            yield next(states) if kind == LIGHTNING else PagedKV(*next(pages), self.page_table, rows)

    def _rows(self, packed: Packed) -> Tensor:
        slots = packed.slots if packed.longest == 1 else packed.slots[packed.sequence_ids]
        pages = self.page_table[slots, packed.positions // self.page_size].to(torch.int64)
        return pages * self.page_size + packed.positions % self.page_size

    def _pages_of(self, slot: int) -> list[int]:
        if slot not in self._owned:
            raise ValueError(f"cache slot {slot} is not in use: never acquired, or already released")
        return self._owned[slot]
