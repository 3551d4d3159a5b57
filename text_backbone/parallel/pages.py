"""A hybrid cache whose pages are shared out over ranks: for more keys and values than one GPU has memory for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from text_backbone.cache import HybridCache, LayerCache, PagedKV, put
from text_backbone.config import TextConfig
from text_backbone.kernels.device import use_gpu_kernels
from text_backbone.kernels.softmax.partial import Merged, causal_attention
from text_backbone.kernels.softmax.parts import Cached, add_cached
from text_backbone.packed import Packed, sent
from text_backbone.parallel.collectives import Collectives

_GATHERED = 2**24  # numbers of one message


class ShardedCache(HybridCache):
    """A `HybridCache` in which page number p of the softmax layers is on rank p mod ranks.

    All ranks call its methods, and the decoder with it, in the same order and with the same arguments, and compute the
    same: only attention to the cache is shared out. A rank attends to the cached tokens that it has; what all found is
    merged in float32, by one message in each softmax layer. New tokens of a prompt attend to each other on every rank.

    Args:
        pages: on each rank.
        group: of the ranks. The other arguments are those of `HybridCache`.

    Attributes:
        page_table: has the scratch page where a sequence's page is on another rank.
        own_table: int32 [slots, pages], the pages of a slot that are here, in the order of its tokens.
    """

    def __init__(
        self,
        config: TextConfig,
        *,
        slots: int,
        pages: int,
        group: Collectives,
        page_size: int = 256,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            config, slots=slots, pages=pages, page_size=page_size, device=device, dtype=dtype, scratch=True,
            elsewhere=pages * (group.ranks - 1),
        )  # fmt: skip
        self.group, self._scratch_page = group, pages
        self.own_table = torch.zeros(slots, pages, dtype=torch.int32, device=device)
        self._places: dict[int, list[int]] = {}  # of a slot's pages those that are here, by their place in it

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.own_table.nbytes

    def on_device(self, slots: Sequence[int]) -> bool:
        return False  # which of a token's keys are here is known to the host, and changes from step to step

    def acquire(self) -> int:
        slot = super().acquire()
        self._places[slot] = []
        return slot

    def own_tokens(self, slot: int, tokens: int) -> int:
        """How many of the first `tokens` tokens of a slot are here: the first ones of its row of `own_table`."""
        places = self._places[slot]
        full, rest = divmod(tokens, self.page_size)
        count = bisect_left(places, full)
        last = rest if count < len(places) and places[count] == full else 0
        return count * self.page_size + last

    def _here(self, page: int) -> bool:
        return page % self.group.ranks == self.group.rank

    def _write(self, slot: int, at: int, pages: Sequence[int]) -> None:
        local = [page // self.group.ranks if self._here(page) else self._scratch_page for page in pages]
        super()._write(slot, at, local)
        places, own = self._places[slot], [page for page in local if page != self._scratch_page]
        if own:
            put(self.own_table[slot, len(places) : len(places) + len(own)], own)
        places += [place for place, page in enumerate(pages, at) if self._here(page)]

    def _copy_page(self, page: int, to: int) -> None:
        """Every rank gets the page, and one writes it."""
        source, ranks = page % self.group.ranks, self.group.ranks
        for pool in (self.keys, self.values):
            held = pool[:, page // ranks if self._here(page) else self._scratch_page]
            copied = self.group.broadcast(held.clone(memory_format=torch.contiguous_format), source)
            if self._here(to):
                pool[:, to // ranks].copy_(copied)

    def layers(self, packed: Packed) -> Iterator[LayerCache]:
        memories = super().layers(packed)
        return self._on_all_ranks(memories, Step(self, packed))

    def _on_all_ranks(self, memories: Iterator[LayerCache], step: Step) -> Iterator[LayerCache]:
        for memory in memories:
            if isinstance(memory, PagedKV):
                yield ShardedKV(memory.keys, memory.values, memory.page_table, memory.rows, step)
            else:
                yield memory


class Step:
    """One pass over a batch: which cached tokens of its sequences are on this rank."""

    def __init__(self, cache: ShardedCache, packed: Packed) -> None:
        self._group, self._table, self._slots = cache.group, cache.own_table, packed.slots
        self._single = packed.longest == 1
        # Single tokens see themselves in the pages; the tokens of a prompt see each other where they are computed.
        ends = [past + self._single for past in packed.pasts]
        self._rows = [
            slice(start, start + length)
            for start, length, end in zip(packed.starts, packed.lengths, ends, strict=True)
            if end
        ]
        sequences = [(slot, end) for slot, end in zip(packed.slot_ids, ends, strict=True) if end]
        self._sequences = [(slot, cache.own_tokens(slot, end)) for slot, end in sequences]
        if self._single:
            tokens = tuple(count for _, count in self._sequences)
            self._tokens = sent([tokens], cache.keys.device)[0]

    def attention(self, q: Tensor, k: Tensor, v: Tensor, packed: Packed, keys: Tensor, values: Tensor) -> Tensor:
        """As `PagedKV.attention`."""
        if self._single:
            single = self._single_tokens if use_gpu_kernels(q) else self._one_by_one
            return self._over_ranks(*single(q, keys, values))[0].to(q.dtype)
        out, logs = causal_attention(q, k, v, packed)
        if not self._sequences:
            return out
        merged, start = Merged(out, logs), 0
        seen, seen_logs = self._over_ranks(*self._one_by_one(q, keys, values))
        for rows in self._rows:
            stop = start + rows.stop - rows.start
            merged.add(rows, seen[start:stop], seen_logs[:, start:stop])
            start = stop
        return merged.result()[0].to(q.dtype)

    def _single_tokens(self, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Of each sequence's one token to what is here: float32 [n, heads, d], and logs [heads, n]."""
        from text_backbone.kernels.softmax.decode import partial_attentions

        before = (self._tokens - 1).clamp(min=0)  # the kernel takes one token where there is none, in any page
        out, logs = partial_attentions(q, keys, values, before, self._slots, self._table)
        none = self._tokens == 0
        return out.masked_fill(none[:, None, None], 0), logs.masked_fill(none, float("-inf"))

    def _one_by_one(self, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The same of all tokens of the sequences that have some cached."""
        parts = []
        for rows, (slot, tokens) in zip(self._rows, self._sequences, strict=True):
            merged = Merged.nothing(q[rows])
            if tokens:
                add_cached(merged, q[rows], Cached(keys, values, tokens, self._table[slot]))
            parts.append(merged.result())
        outs, logs = zip(*parts, strict=True)
        return torch.cat(outs), torch.cat(logs, dim=1)

    def _over_ranks(self, out: Tensor, logs: Tensor) -> tuple[Tensor, Tensor]:
        """What all ranks have found, merged in the dtype that it comes in."""
        outs, merged = [], []
        for part, some in zip(*self._messages(out, logs), strict=True):
            every = self._group.all_gather(torch.cat((part, some.T.unsqueeze(-1)), dim=-1))  # [ranks, n, heads, d + 1]
            each = every[..., -1]
            merged.append(each.logsumexp(0))
            outs.append((every[..., :-1] * (each - merged[-1]).exp().unsqueeze(-1)).sum(0))
        return torch.cat(outs), torch.cat(merged).T

    def _messages(self, out: Tensor, logs: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        rows = max(1, _GATHERED // (out.shape[1] * (out.shape[2] + 1)))
        return out.split(rows), logs.split(rows, dim=1)


@dataclass(frozen=True)
class ShardedKV(PagedKV):
    """The pages of one softmax layer that are on this rank."""

    step: Step

    def attention(self, q: Tensor, k: Tensor, v: Tensor, packed: Packed) -> Tensor:
        return self.step.attention(q, k, v, packed, self.keys, self.values)
