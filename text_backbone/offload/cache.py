"""A hybrid cache whose pages beyond a number are in host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, groupby

import torch
from torch import Tensor

from text_backbone.cache import HybridCache, LayerCache, PagedKV, bytes_needed
from text_backbone.config import SOFTMAX, TextConfig
from text_backbone.kernels.softmax import Cached, attention_in_parts, paged_attention
from text_backbone.offload.host import BUFFERS, Bringing, HostPages, buffer_pages
from text_backbone.offload.layout import Loads, Past, Piece, Span
from text_backbone.packed import Packed, sent


class OffloadedCache(HybridCache):
    """A `HybridCache` in which some of the softmax layers' pages are in host memory.

    Every page has a place, on the device or in the host's memory, and sequences take those on the device first. The
    place of a page that a slot holds does not change: what is new is written to it at once, and attention takes pages
    of the host by way of two buffers on the device, each filled while the other is attended to. Pages that are only
    kept (`retain`) make room on the device for those of slots, and come back there when a slot shares them.
    A batch none of whose sequences owns pages in host memory goes as in a `HybridCache`.

    Args:
        pages: places on the device.
        host_pages: more of them, in host memory. The other arguments are those of `HybridCache`.

    Attributes:
        host: those in host memory.
        page_table: has the scratch page where a sequence's page is in host memory.
    """

    def __init__(
        self,
        config: TextConfig,
        *,
        slots: int,
        pages: int,
        host_pages: int,
        page_size: int = 256,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            config, slots=slots, pages=pages, page_size=page_size, device=device, dtype=dtype, scratch=True,
            elsewhere=host_pages,
        )  # fmt: skip
        self.device_pages = pages
        layers, page = len(self.keys), (page_size, *self.keys.shape[3:])
        self.host = HostPages(layers, host_pages, page, self.keys.device, self.keys.dtype)
        self._offloaded: set[int] = set()  # slots with pages in host memory
        self._places = list(range(pages + host_pages))  # of each page; from `device_pages` on in host memory
        self._pages_at = list(range(pages))  # the page at each place of the device

    @property
    def nbytes(self) -> int:
        """Memory that the tensors take on the device."""
        return super().nbytes + self.host.buffers.nbytes

    def on_device(self, slots: Sequence[int]) -> bool:
        return self._offloaded.isdisjoint(slots)

    def release(self, slot: int) -> None:
        super().release(slot)
        self._offloaded.discard(slot)

    def place(self, page: int) -> int:
        """Where a page is: from `device_pages` on in host memory."""
        return self._places[page]

    def reserve(self, slot: int, tokens: int) -> None:
        new = self._allocator.reserve(slot, tokens)
        if new:
            self._move_in(new, filled=False)
            self._write(slot, len(self._allocator.pages_of(slot)) - len(new), new)

    def share(self, slot: int, pages: Sequence[int], tokens: int) -> None:
        self._move_in([page for page in pages if not self._allocator.in_slots([page])], filled=True)
        super().share(slot, pages, tokens)

    def _write(self, slot: int, at: int, pages: Sequence[int]) -> None:
        places = [self._places[page] for page in pages]
        if any(place >= self.device_pages for place in places):
            self._offloaded.add(slot)
        super()._write(slot, at, [min(place, self.device_pages) for place in places])

    def _copy_page(self, page: int, to: int) -> None:
        self._move_in([to], filled=False)
        for layer, pools in enumerate(zip(self.keys, self.values, strict=True)):
            self._set_page(layer, pools, to, self._page(layer, pools, page))

    @torch.inference_mode()
    def _move_in(self, pages: Sequence[int], filled: bool) -> None:
        """Give pages, which no page table names yet, places on the device that no slot uses, as far as there are any.

        Args:
            filled: whether they hold anything.
        """
        far = [page for page in pages if self._places[page] >= self.device_pages]
        if not far:
            return
        staying = set(pages)
        spare = [page for page in self._pages_at if page not in staying and not self._allocator.in_slots([page])]
        spare.sort(key=self._allocator.is_kept)  # those that hold nothing first
        for page, other in zip(far, spare, strict=False):
            self._swap(page, other, filled)

    def _swap(self, page: int, other: int, filled: bool) -> None:
        """Exchange the places of a page in host memory and one on the device, and what they hold."""
        for layer, pools in enumerate(zip(self.keys, self.values, strict=True)):
            held = self._page(layer, pools, page) if filled else None
            if self._allocator.is_kept(other):
                self._set_page(layer, pools, page, self._page(layer, pools, other))
            if held:
                self._set_page(layer, pools, other, held)
        places = self._places
        places[page], places[other] = places[other], places[page]
        self._pages_at[places[page]] = page

    def _copy_out(self, layer: int, pages: Sequence[int], keys: Tensor, values: Tensor) -> None:
        pools = self.keys[layer], self.values[layer]
        for at, page in enumerate(pages):
            for taken, held in zip((keys, values), self._page(layer, pools, page), strict=True):
                taken[at].copy_(held, non_blocking=True)

    def write_pages(self, layer: int, pages: Sequence[int], keys: Tensor, values: Tensor) -> None:
        pools = self.keys[layer], self.values[layer]
        for page, held in zip(pages, zip(keys, values, strict=True), strict=True):
            self._set_page(layer, pools, page, (held[0].to(pools[0].device), held[1].to(pools[1].device)))

    def _page(self, layer: int, pools: tuple[Tensor, Tensor], page: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a page, [page_size, kv_heads, d], on the device."""
        (keys, values), place = pools, self._places[page]
        if place < self.device_pages:
            return keys[place], values[place]
        # Not from host to host: the host does not wait for what the device has yet to write there.
        return self.host.read(layer, place - self.device_pages)

    def _set_page(self, layer: int, pools: tuple[Tensor, Tensor], page: int, held: tuple[Tensor, Tensor]) -> None:
        """Give a page keys and values, [page_size, kv_heads, d], that are on the device."""
        place = self._places[page]
        if place < self.device_pages:
            for pool, values in zip(pools, held, strict=True):
                pool[place].copy_(values)
        else:
            rows = 0, (place - self.device_pages) * self.page_size, self.page_size
            self.host.write(layer, self.host.spans_to(iter([rows])), held)

    def layers(self, packed: Packed) -> Iterator[LayerCache]:
        """As `HybridCache.layers`. Softmax layers are to attend one after the other, each to all of its past."""
        memories = super().layers(packed)
        return memories if self.on_device(packed.slot_ids) else self._through_buffers(packed, memories)

    def _through_buffers(self, packed: Packed, memories: Iterator[LayerCache]) -> Iterator[LayerCache]:
        step, layers = Step(self, packed), count()
        for memory in memories:
            if isinstance(memory, PagedKV):
                pages = memory.keys, memory.values, memory.page_table, memory.rows
                yield OffloadedKV(*pages, step, next(layers))
            else:
                yield memory

    def past_of(self, slot: int, tokens: int, loads: Loads) -> Past:
        """Where the first `tokens` tokens of a slot are; those in host memory are added to `loads`."""
        return loads.take([self._places[page] for page in self._allocator.pages_of(slot)], tokens)

    def host_rows(self, slot: int, past: int, tokens: int) -> Iterator[tuple[int, int, int]]:
        """Of `tokens` new tokens those whose pages are in host memory: (first of them, first row there, how many)."""
        pages, size, end = self._allocator.pages_of(slot), self.page_size, past + tokens
        for number in range(past // size, -(-end // size)):
            first, last = max(past, number * size), min(end, (number + 1) * size)
            place = self._places[pages[number]] - self.device_pages
            if place >= 0:
                yield first - past, place * size + first % size, last - first


@dataclass(frozen=True)
class Run:
    """Neighbouring sequences of a batch that are wholly on the device, or one that is not.

    Attributes:
        rows: their tokens.
        packed: these sequences as a batch.
        past: of the one that is not.
        near: int32, the pages in `past.near`; None: there are none.
    """

    rows: slice
    packed: Packed
    past: Past | None = None
    near: Tensor | None = None


class Step:
    """One pass over a batch, some of whose pages are in host memory."""

    def __init__(self, cache: OffloadedCache, packed: Packed) -> None:
        self._host, device = cache.host, cache.keys.device
        loads = Loads(cache.device_pages, cache.page_size, cache.host.room)
        self._runs: list[Run] = []
        new: list[tuple[int, int, int]] = []
        sequences = zip(packed.starts, packed.lengths, packed.pasts, packed.slot_ids, strict=True)
        for far, some in groupby(sequences, lambda sequence: None if cache.on_device(sequence[3:]) else sequence[3]):
            starts, lengths, pasts, slots = zip(*some, strict=True)
            rows = slice(starts[0], starts[-1] + lengths[-1])
            batch = Packed.of(lengths, past=pasts, slots=slots, device=device)
            if far is None:
                self._runs.append(Run(rows, batch))
                continue
            past = cache.past_of(far, pasts[0], loads)
            pages = sent([past.near], device)[0].to(torch.int32) if past.near else None
            self._runs.append(Run(rows, batch, past, pages))
            new += ((rows.start + at, row, count) for at, row, count in cache.host_rows(far, pasts[0], lengths[0]))
        self._new: list[Span] = cache.host.spans_to(iter(new))
        self._bringing = Bringing(cache.host, loads.pages)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, pages: OffloadedKV) -> Tensor:
        """As `PagedKV.attention`; what is new and belongs in host memory is written there."""
        self._host.write(pages.layer, self._new, (k, v))
        outs = []
        for run in self._runs:
            new = q[run.rows], k[run.rows], v[run.rows]
            if run.past is None:
                outs.append(paged_attention(*new, run.packed, pages.keys, pages.values, pages.page_table))
            else:
                outs.append(attention_in_parts(*new, run.packed, list(self._parts(run.past, run.near, pages))))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _parts(self, past: Past, near: Tensor | None, pages: OffloadedKV) -> Iterator[Callable[[], Cached]]:
        """What is on the device first: meanwhile the rest comes."""
        if near is not None:
            held = Cached(pages.keys, pages.values, past.near_tokens, near)
            yield lambda: held
        for piece in past.pieces:
            yield partial(self._bring, pages.layer, piece)

    def _bring(self, layer: int, piece: Piece) -> Cached:
        keys, values = self._bringing.bring(layer, piece.load)
        return Cached(keys[piece.at :], values[piece.at :], piece.tokens)


@dataclass(frozen=True)
class OffloadedKV(PagedKV):
    """The pages of softmax layer number `layer` where those of some sequences are in host memory."""

    step: Step
    layer: int

    def attention(self, q: Tensor, k: Tensor, v: Tensor, packed: Packed) -> Tensor:
        return self.step.attention(q, k, v, self)


def device_bytes(
    config: TextConfig, *, slots: int, pages: int, host_pages: int, page_size: int, dtype: torch.dtype
) -> int:
    """Memory that an `OffloadedCache` of these sizes takes on the device."""
    tensors = bytes_needed(
        config, slots=slots, pages=pages, page_size=page_size, dtype=dtype, scratch=True, elsewhere=host_pages
    )
    return tensors + BUFFERS * buffer_pages(host_pages, page_size) * _page_bytes(config, page_size, dtype)


def host_bytes(config: TextConfig, *, host_pages: int, page_size: int, dtype: torch.dtype) -> int:
    """Memory that an `OffloadedCache` of these sizes takes of the host's."""
    room = buffer_pages(host_pages, page_size)
    layers = sum(kind == SOFTMAX for kind in config.attn_type_list)
    return layers * -(-host_pages // room) * room * _page_bytes(config, page_size, dtype)


def _page_bytes(config: TextConfig, page_size: int, dtype: torch.dtype) -> int:
    """Keys and values of a page of one layer."""
    return 2 * dtype.itemsize * page_size * config.num_key_value_heads * config.head_dim
