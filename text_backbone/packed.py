"""A batch of sequences of any lengths, laid end to end without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

CHUNK = 128


@dataclass(frozen=True, eq=False)
class Chunks:
    """How the tokens of a batch fall into the chunks of chunked linear attention.

    Sequences are ranked by falling chunk count and chunks are ordered by (index within the sequence, rank), so chunk
    number j of every sequence that has one is a contiguous run, and those sequences are the first `active[j]` ranks.

    Attributes:
        size: tokens a chunk can hold, C.
        active: sequences that have a j-th chunk, for each j; sums to the number of chunks N.
        order: int64 [n], sequence of each rank.
        rank: int64 [n], rank of each sequence.
        filled: int64 [N], tokens really in each chunk; only a sequence's last chunk may hold fewer than C.
        rows: int64 [T], row of each token in the [N * C] chunked layout.
    """

    size: int
    active: tuple[int, ...]
    order: Tensor
    rank: Tensor
    filled: Tensor
    rows: Tensor


@dataclass(frozen=True, eq=False)
class Segments:
    """How the sequences of a batch fall into segments, the units of work of the chunked linear attention kernels.

    A sequence longer than `size` is a chain: segments of `size` tokens, the last one maybe shorter. A chain falls also
    into pieces of `piece` tokens, each of which has a cell to keep a state in; the cells of a chain follow one another.
    Segments of chains come first, ordered by index within the chain, so that the longest are not started last.

    Attributes:
        size, piece: tokens of a segment and of a piece, at most; `size` is a multiple of `piece`.
        count, cells, chained: segments, pieces, and chains.
        table: int64 [count, 6]; first row, tokens, sequence, cells of its first and of its last piece (-1 outside
            chains), 1 if last of its sequence.
        pieces: int64 [cells, 6]; first row, tokens, 1 if in the first segment of its chain, 1 if in the last, 0, 0.
        chains: int64 [chained, 6]; sequence, first cell, pieces, tokens of the last piece, 0, 0.
    """

    size: int
    piece: int
    count: int
    cells: int
    chained: int
    table: Tensor
    pieces: Tensor
    chains: Tensor


@dataclass(frozen=True, eq=False)
class Packed:
    """Where each sequence of a batch lies in the `[total_tokens, ...]` tensors, and in the cache.

    Every device tensor has a host twin, so that the model never waits for the device to learn a length.

    Attributes:
        offsets: int64 [n + 1], sequence i is rows `offsets[i]` to `offsets[i + 1]`.
        past: int64 [n], tokens of the sequence that are already in the cache.
        slots: int64 [n], cache slot of each sequence.
        lengths, starts, pasts, slot_ids: the same on the host.
    """

    offsets: Tensor
    past: Tensor
    slots: Tensor
    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    pasts: tuple[int, ...]
    slot_ids: tuple[int, ...]

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        *,
        past: Sequence[int] | None = None,
        slots: Sequence[int] | None = None,
        device: torch.device | str | None = None,
    ) -> Packed:
        """Describe sequences of `lengths` new tokens, after `past` cached ones (0), in cache slots `slots` (0, 1, ...).

        Raises:
            ValueError: if the lists differ in length, a length is below 1, a past below 0, or a slot occurs twice.
        """
        lengths = tuple(int(length) for length in lengths)
        pasts = tuple(int(p) for p in past) if past is not None else (0,) * len(lengths)
        slot_ids = tuple(int(s) for s in slots) if slots is not None else tuple(range(len(lengths)))
        if not len(lengths) == len(pasts) == len(slot_ids):
            raise ValueError(
                f"{len(lengths)} lengths, {len(pasts)} pasts and {len(slot_ids)} slots: give one per sequence"
            )
        if not lengths or min(lengths) < 1:
            raise ValueError(f"a batch needs at least one sequence, each of at least one token; got lengths {lengths}")
        if min(pasts) < 0:
            raise ValueError(f"past counts cached tokens and cannot be negative; got {pasts}")
        if len(set(slot_ids)) != len(slot_ids) or min(slot_ids) < 0:
            raise ValueError(f"each sequence needs a cache slot of its own; got slots {slot_ids}")
        starts = tuple(accumulate(lengths, initial=0))
        count = len(lengths)
        # One copy to the device, and every row of it at a 16-byte boundary, for which kernels are compiled.
        spare = (0,) * (2 - count % 2)
        rows = _sent(((*starts, *spare[1:]), (*pasts, *spare), (*slot_ids, *spare)), device)
        return cls(
            offsets=rows[0, : count + 1],
            past=rows[1, :count],
            slots=rows[2, :count],
            lengths=lengths,
            starts=starts[:-1],
            pasts=pasts,
            slot_ids=slot_ids,
        )

    @property
    def sequences(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return self.starts[-1] + self.lengths[-1]

    @cached_property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def sequence_ids(self) -> Tensor:
        """int64 [T], the sequence that each token belongs to."""
        return torch.repeat_interleave(self.offsets.diff(), output_size=self.tokens)

    @cached_property
    def local_positions(self) -> Tensor:
        """int64 [T], position of each token among the new tokens of its sequence."""
        rows = torch.arange(self.tokens, device=self.offsets.device)
        return rows - self.offsets[self.sequence_ids]

    @cached_property
    def positions(self) -> Tensor:
        """int64 [T], position of each token in its sequence, cached tokens included."""
        if self.longest == 1:
            return self.past
        return self.local_positions + self.past[self.sequence_ids]

    @cached_property
    def chunks(self) -> Chunks:
        """The batch in chunks of at most `CHUNK` tokens, of a size that divides the longest sequence evenly."""
        size, device = -(-self.longest // -(-self.longest // CHUNK)), self.offsets.device
        counts = [-(-length // size) for length in self.lengths]
        order = sorted(range(self.sequences), key=lambda i: -counts[i])
        rank = sorted(range(self.sequences), key=order.__getitem__)
        active = tuple(sum(count > j for count in counts) for j in range(max(counts)))
        filled = [min(size, self.lengths[i] - j * size) for j, running in enumerate(active) for i in order[:running]]
        first = torch.tensor((0, *accumulate(active))[:-1], device=device)  # [J] number of the first j-th chunk
        ranks = torch.tensor(rank, device=device)
        number = first[self.local_positions // size] + ranks[self.sequence_ids]
        return Chunks(
            size=size,
            active=active,
            order=torch.tensor(order, device=device),
            rank=ranks,
            filled=torch.tensor(filled, device=device),
            rows=number * size + self.local_positions % size,
        )

    def segments(self, size: int, piece: int | None = None) -> Segments:
        """The batch in segments of `size` tokens and pieces of `piece` (`size`); made once for each pair."""
        key = size, piece or size
        if key not in self._segments:
            self._segments[key] = self._cut(*key)
        return self._segments[key]

    @cached_property
    def _segments(self) -> dict[tuple[int, int], Segments]:
        return {}

    def _cut(self, size: int, piece: int) -> Segments:
        if size % piece:
            raise ValueError(f"segments of {size} tokens do not fall into pieces of {piece}")
        chained: list[tuple[int, tuple[int, ...]]] = []  # index within the chain, row of the table
        alone: list[tuple[int, ...]] = []
        pieces: list[tuple[int, ...]] = []
        chains: list[tuple[int, ...]] = []
        for i, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            if length <= size:
                alone.append((start, length, i, -1, -1, 1))
                continue
            cell, final = len(pieces), (length - 1) // size * size  # where the last segment begins
            for first in range(0, length, piece):
                pieces.append((start + first, min(piece, length - first), first < size, first >= final))
            for first in range(0, length, size):
                tokens = min(size, length - first)
                cells = cell + first // piece, cell + (first + tokens - 1) // piece
                chained.append((first, (start + first, tokens, i, *cells, first == final)))
            chains.append((i, cell, len(pieces) - cell, pieces[-1][1]))
        chained.sort()
        table = [row for _, row in chained] + alone
        # One copy to the device; every part of it at a 16-byte boundary, for which kernels are compiled.
        parts = _sent((*table, *((*row, 0, 0) for row in (*pieces, *chains))), self.offsets.device)
        rows, cut, ends = parts.split((len(table), len(pieces), len(chains)))
        return Segments(size, piece, len(table), len(pieces), len(chains), rows, cut, ends)


def _sent(values: Sequence[tuple[int, ...]], device: torch.device | str | None) -> Tensor:
    """int64 tensor on the device; from pinned memory, or the host would wait for all that the GPU has yet to do."""
    tensor = torch.tensor(values, dtype=torch.int64)
    target = torch.get_default_device() if device is None else torch.device(device)
    if target.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(target, non_blocking=True)
