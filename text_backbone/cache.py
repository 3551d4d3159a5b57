"""What a sequence leaves behind: one fixed-size state per lightning layer, paged keys and values per softmax layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from text_backbone.allocator import Allocator
from text_backbone.config import LIGHTNING, TextConfig
from text_backbone.kernels.softmax import paged_attention
from text_backbone.packed import Packed
from text_backbone.places import Places


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

    def attention(self, q: Tensor, k: Tensor, v: Tensor, packed: Packed) -> Tensor:
        """Of new tokens that have been written to the pages; arguments and result as of `paged_attention`."""
        return paged_attention(q, k, v, packed, self.keys, self.values, self.page_table)


def bytes_needed(
    config: TextConfig,
    *,
    slots: int,
    pages: int,
    page_size: int,
    dtype: torch.dtype,
    scratch: bool = False,
    elsewhere: int = 0,
) -> int:
    """Memory that a `HybridCache` of these sizes takes."""
    states, kv, table = map(prod, _shapes(config, slots, pages, page_size, scratch, elsewhere))
    return 4 * states + 2 * dtype.itemsize * kv + 4 * table


def snapshot_bytes(config: TextConfig) -> int:
    """Memory on the host that a `HybridCache.snapshot` takes."""
    states, _, _ = _shapes(config, 1, 0, 0, False, 0)
    return 4 * prod(states)


def _shapes(
    config: TextConfig, slots: int, pages: int, page_size: int, scratch: bool, elsewhere: int
) -> tuple[tuple[int, ...], ...]:
    """Of the states, of the keys and of the values, and of the page table."""
    d, kinds = config.head_dim, config.attn_type_list
    lightning = sum(kind == LIGHTNING for kind in kinds)
    return (
        (lightning, slots + scratch, config.num_attention_heads, d, d),
        (len(kinds) - lightning, pages + scratch, page_size, config.num_key_value_heads, d),
        (slots + scratch, pages + elsewhere),
    )


def runs(pages: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Pages whose numbers follow on each other: (where in `pages` they begin, the first, how many)."""
    start = 0
    for at in range(1, len(pages) + 1):
        if at == len(pages) or pages[at] != pages[at - 1] + 1:
            yield start, pages[start], at - start
            start = at


@dataclass(frozen=True)
class MarkedStates:
    """The states of one lightning layer in a pass with marks.

    Attributes:
        states: float32 [slots, heads, d, d].
        kept: of each mark float32 [heads, d, d] on the host, for a copy.
    """

    states: Tensor
    kept: Sequence[Tensor]


LayerCache = Tensor | MarkedStates | PagedKV


class HybridCache:
    """Cache of a hybrid decoder, shared by up to `slots` sequences.

    A sequence owns one slot: a `[heads, d, d]` float32 state per lightning layer, whatever its length, and as many
    pages of `page_size` tokens as it has reserved, the same page numbers in every softmax layer. `Allocator` says who
    owns what; this class holds the tensors, all of which stay where they are.

    Args:
        scratch: have one slot and one page more, which no sequence can acquire: for rows that only fill a batch up.
        elsewhere: pages, the last by number, that sequences can own but `keys` and `values` have no room for.

    Attributes:
        states: float32 [lightning_layers, slots, heads, d, d].
        keys: `dtype` [softmax_layers, pages, page_size, kv_heads, d].
        values: as `keys`.
        page_table: int32 [slots, pages]; entries beyond a slot's reserved pages mean nothing, but name pages.
        places: where states are kept on the host, by number.
        lightning_layers, softmax_layers: the decoder's layers in the order of `states`, and of `keys`.
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
        elsewhere: int = 0,
    ) -> None:
        self._allocator = Allocator(slots, pages + elsewhere, page_size)
        self.page_size, self.slots, self.pages = page_size, slots, pages + elsewhere
        states, kv, table = _shapes(config, slots, pages, page_size, scratch, elsewhere)
        self.states = torch.zeros(states, dtype=torch.float32, device=device)
        self.keys = torch.zeros(kv, dtype=dtype, device=device)
        self.values = torch.zeros(kv, dtype=dtype, device=device)
        self.page_table = torch.zeros(table, dtype=torch.int32, device=device)
        self.places = Places(states[0], states[2:], self.states.device)
        self._kinds = config.attn_type_list
        kinds = tuple(enumerate(self._kinds))
        self.lightning_layers = tuple(layer for layer, kind in kinds if kind == LIGHTNING)
        self.softmax_layers = tuple(layer for layer, kind in kinds if kind != LIGHTNING)
        self.scratch_slot: int | None = None
        if scratch:
            self.scratch_slot = slots
            self.page_table[slots].fill_(pages)

    @property
    def free_slots(self) -> int:
        return self._allocator.free_slots

    @property
    def free_pages(self) -> int:
        return self._allocator.free_pages

    @property
    def idle_pages(self) -> int:
        """Pages that no slot holds, but something else does (`retain`)."""
        return self._allocator.idle_pages

    @property
    def nbytes(self) -> int:
        """Memory that the tensors take, kept states not counted: they are on the host."""
        return sum(tensor.nbytes for tensor in (self.states, self.keys, self.values, self.page_table))

    def on_device(self, slots: Sequence[int]) -> bool:
        """Whether all pages of these slots are where `keys` and `values` are: then a CUDA graph may read them."""
        return True

    def capacity(self, slot: int) -> int:
        """Tokens that `slot` may hold with the pages it owns. Raises ValueError if the slot is not in use."""
        return self.page_size if slot == self.scratch_slot else self._allocator.capacity(slot)

    def acquire(self) -> int:
        """Take a free slot, its states zeroed and no pages owned.

        Raises:
            CacheFull: if every slot is in use.
        """
        slot = self._allocator.acquire()
        try:
            self.states[:, slot].zero_()
        except BaseException:
            self._allocator.release(slot)
            raise
        return slot

    def reserve(self, slot: int, tokens: int) -> None:
        """Make room for `tokens` tokens in all in `slot`, those it already holds included.

        Raises:
            CacheFull: if too few pages are free; the slot then keeps what it had.
            ValueError: if the slot is not in use.
        """
        new = self._allocator.reserve(slot, tokens)
        if new:
            self._write(slot, len(self._allocator.pages_of(slot)) - len(new), new)

    def release(self, slot: int) -> None:
        """Give back a slot, and of its pages those that nobody else holds.

        Raises:
            ValueError: if the slot is not in use, for instance because it was released before.
        """
        self._allocator.release(slot)

    # Beginning with what another sequence has left: pages that are shared, and states that were kept

    def pages_of(self, slot: int) -> Sequence[int]:
        """The pages of `slot`, in the order of its tokens. Raises ValueError if the slot is not in use."""
        return self._allocator.pages_of(slot)

    def retain(self, pages: Sequence[int]) -> None:
        """Hold pages once more, so that they outlive their slots. Raises ValueError if one is free."""
        self._allocator.retain(pages)

    def drop(self, pages: Sequence[int]) -> None:
        """Undo one `retain`. Raises ValueError if a page is not kept."""
        self._allocator.drop(pages)

    def pin(self, pages: Sequence[int]) -> None:
        """Hold pages that are kept as a slot does: they are not idle."""
        self._allocator.pin(pages)

    def unpin(self, pages: Sequence[int]) -> None:
        """Undo one `pin`."""
        self._allocator.unpin(pages)

    def in_slots(self, pages: Sequence[int]) -> int:
        """How many of them slots hold."""
        return self._allocator.in_slots(pages)

    def last_held(self, pages: Sequence[int]) -> bool:
        """Whether one of them would be free if they were dropped."""
        return self._allocator.last_held(pages)

    def share(self, slot: int, pages: Sequence[int], tokens: int) -> None:
        """Let `slot`, which has no pages yet, begin with the keys and values of `tokens` tokens that lie in `pages`.

        The sequence that wrote them may go on writing behind those tokens: a page that is not full of them is copied.

        Raises:
            CacheFull: if there is no page for that copy; the slot then has none.
            ValueError: if the slot is not in use or has pages, or those are too few or free.
        """
        new = self._allocator.share(slot, pages, tokens)
        for page in new:
            self._copy_page(pages[-1], page)
        self._write(slot, 0, self._allocator.pages_of(slot))

    def _copy_page(self, page: int, to: int) -> None:
        for pool in (self.keys, self.values):
            pool[:, to].copy_(pool[:, page])

    @torch.inference_mode()
    def snapshot(self, slot: int, out: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """A copy of the states of `slot` on the host, without waiting for the device.

        On a GPU it is there once the work queued on the current stream is done; later work may change the slot.

        Args:
            out: what an earlier call returned, to be written to again.

        Returns:
            of each lightning layer float32 [heads, d, d], page-locked if the cache is on a GPU.
        """
        self.capacity(slot)
        out = self.places.new() if out is None else out
        for kept, states in zip(out, self.states, strict=True):
            kept.copy_(states[slot], non_blocking=True)
        return out

    @torch.inference_mode()
    def restore(self, slot: int, states: Sequence[Tensor]) -> None:
        """Give `slot` the states that `snapshot` has copied, without waiting for the device."""
        self.capacity(slot)
        for kept, own in zip(states, self.states, strict=True):
            own[slot].copy_(kept, non_blocking=True)

    def keep(self, slot: int, place: int) -> None:
        """`snapshot` into the place of that number, instead of what was there."""
        self.snapshot(slot, self.places[place])

    def recall(self, slot: int, place: int) -> None:
        """`restore` what was kept at that place, which stays there."""
        self.restore(slot, self.places[place])

    # What sequences have left, on its way to another cache

    def kept_at(self, place: int) -> Sequence[Tensor]:
        """What was kept at a place, of each lightning layer float32 [heads, d, d] on the host, once it is there."""
        self._wait()
        return self.places[place]

    @torch.inference_mode()
    def read_pages(self, layer: int, pages: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Keys and values of softmax layer number `layer`, copied to the host: [pages, page_size, kv_heads, d]."""
        pool, shape = self.keys[layer], (len(pages), *self.keys.shape[2:])
        keys, values = (torch.empty(shape, dtype=pool.dtype, device="cpu", pin_memory=pool.is_cuda) for _ in range(2))
        self._copy_out(layer, pages, keys, values)
        self._wait()
        return keys, values

    @torch.inference_mode()
    def write_pages(self, layer: int, pages: Sequence[int], keys: Tensor, values: Tensor) -> None:
        """The reverse, without waiting for the device if the tensors are page-locked."""
        for at, first, count in runs(pages):
            for pool, given in ((self.keys[layer], keys), (self.values[layer], values)):
                pool[first : first + count].copy_(given[at : at + count], non_blocking=True)

    def _copy_out(self, layer: int, pages: Sequence[int], keys: Tensor, values: Tensor) -> None:
        for at, first, count in runs(pages):
            for pool, taken in ((self.keys[layer], keys), (self.values[layer], values)):
                taken[at : at + count].copy_(pool[first : first + count], non_blocking=True)

    def _wait(self) -> None:
        if self.states.is_cuda:
            torch.cuda.current_stream(self.states.device).synchronize()

    def _write(self, slot: int, at: int, pages: Sequence[int]) -> None:
        """Put `pages` into the page table, without waiting for the device."""
        put(self.page_table[slot, at : at + len(pages)], pages)

    def layers(self, packed: Packed) -> Iterator[LayerCache]:
        """What each decoder layer reads and writes for `packed`: its states [slots, heads, d, d] or its `PagedKV`.

        If `packed` has marks, states come with what is kept of them.

        For single tokens nothing on the device comes from lengths that the host knows: a CUDA graph may capture it.

        Raises:
            ValueError: if a sequence's slot is not in use or has too few pages for its tokens.
        """
        self.check(packed)
        return self._views(self._rows(packed), [self.places[mark.place] for mark in packed.marks])

    def check(self, packed: Packed) -> None:
        """Raise the ValueError of `layers`."""
        for slot, past, length in zip(packed.slot_ids, packed.pasts, packed.lengths, strict=True):
            if self.capacity(slot) < past + length:
                raise ValueError(
                    f"slot {slot} has room for {self.capacity(slot)} tokens but its sequence comes to {past + length}; "
                    f"call reserve({slot}, {past + length}) first"
                )

    def _views(self, rows: Tensor, kept: Sequence[Sequence[Tensor]]) -> Iterator[LayerCache]:
        layer, pages = 0, zip(self.keys, self.values, strict=True)
        for kind in self._kinds:
            if kind == LIGHTNING:
                states = self.states[layer]
                yield MarkedStates(states, [place[layer] for place in kept]) if kept else states
                layer += 1
            else:
                yield PagedKV(*next(pages), self.page_table, rows)

    def _rows(self, packed: Packed) -> Tensor:
        slots = packed.slots if packed.longest == 1 else packed.slots[packed.sequence_ids]
        pages = self.page_table[slots, packed.positions // self.page_size].to(torch.int64)
        return pages * self.page_size + packed.positions % self.page_size


def put(row: Tensor, numbers: Sequence[int]) -> None:
    """Write numbers to a row of as many, without waiting for the device."""
    if len(numbers) == 1:
        row.fill_(numbers[0])  # what a sequence that is being written needs now and then: no copy at all
        return
    values = torch.tensor(numbers, dtype=row.dtype)
    row.copy_(values.pin_memory() if row.is_cuda else values, non_blocking=True)
