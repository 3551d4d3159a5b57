"""A batch of sequences of any lengths, laid end to end without padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple, Self, TypeVar, TypeVarTuple

import torch
from torch import Tensor

T = TypeVar("T")
Key = TypeVarTuple("Key")


class Mark(NamedTuple):
    """The states of `slot`, as they are once the rows before `row` are read, are to be kept at `place`."""

    row: int
    slot: int
    place: int


@dataclass(frozen=True, eq=False)
class Packed:
    """Where each sequence of a batch lies in the `[total_tokens, ...]` tensors, and in the cache.

    Every device tensor has a host twin, so that the model never waits for the device to learn a length.

    Attributes:
        offsets: int64 [n + 1], sequence i is rows `offsets[i]` to `offsets[i + 1]`.
        past: int64 [n], tokens of the sequence that are already in the cache.
        slots: int64 [n], cache slot of each sequence.
        lengths: tokens of each sequence in this batch, on the host.
        starts: `offsets` without the last, on the host.
        pasts: `past` on the host.
        slot_ids: `slots` on the host.
        marks: where the cache is to keep a copy of a sequence's states; rising.
    """

    offsets: Tensor
    past: Tensor
    slots: Tensor
    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    pasts: tuple[int, ...]
    slot_ids: tuple[int, ...]
    marks: tuple[Mark, ...] = field(default=(), kw_only=True)
    _memo: dict[tuple[object, ...], Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        *,
        past: Sequence[int] | None = None,
        slots: Sequence[int] | None = None,
        marks: Sequence[tuple[int, int, int]] = (),
        device: torch.device | str | None = None,
    ) -> Packed:
        """Describe sequences of `lengths` new tokens, after `past` cached ones (0), in cache slots `slots` (0, 1, ...).

        Args:
            marks: (i, tokens, place): sequence i's states after so many of its new tokens are kept at that place.

        Raises:
            ValueError: if the lists differ in length, a length is below 1, a past below 0, a slot occurs twice, or a
                mark is not within its sequence, or where another is.
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
        for i, tokens, _ in marks:
            if not (0 <= i < count and 1 <= tokens <= lengths[i]):
                raise ValueError(f"a mark after {tokens} tokens of sequence {i} is not within lengths {lengths}")
        if len({mark[:2] for mark in marks}) != len(marks):
            raise ValueError(f"two marks are at the same token: {sorted(marks)}")
        # One copy to the device, and every row of it at a 16-byte boundary, for which kernels are compiled.
        spare = (0,) * (2 - count % 2)
        rows = sent(((*starts, *spare[1:]), (*pasts, *spare), (*slot_ids, *spare)), device)
        return cls(
            offsets=rows[0, : count + 1],
            past=rows[1, :count],
            slots=rows[2, :count],
            lengths=lengths,
            starts=starts[:-1],
            pasts=pasts,
            slot_ids=slot_ids,
            marks=tuple(sorted(Mark(starts[i] + tokens, slot_ids[i], place) for i, tokens, place in marks)),
        )

    def part(self, start: int, stop: int) -> Packed:
        """The rows from `start` to `stop`: of a sequence that begins before them, what is before counts as cached."""
        cut = [
            (max(at, start), min(at + length, stop), i)
            for i, (at, length) in enumerate(zip(self.starts, self.lengths, strict=True))
        ]
        cut = [(first, last, i) for first, last, i in cut if first < last]
        return Packed.of(
            [last - first for first, last, _ in cut],
            past=[self.pasts[i] + first - self.starts[i] for first, _, i in cut],
            slots=[self.slot_ids[i] for _, _, i in cut],
            device=self.offsets.device,
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

    def memo(self, derive: Callable[[Self, *Key], T], *key: *Key) -> T:
        """`derive(self, *key)`, made once for each function and key: what the layers of a pass ask for again and again.

        What it makes outlives the pass, and serves training too although inference may have been the first to ask.
        """
        known = self._memo.get((derive, *key))
        if known is None:
            with torch.inference_mode(False):
                known = self._memo[derive, *key] = derive(self, *key)
        return known


def sent(values: Sequence[tuple[int, ...]], device: torch.device | str | None) -> Tensor:
    """int64 tensor on the device; from pinned memory, or the host would wait for all that the GPU has yet to do."""
    tensor = torch.tensor(values, dtype=torch.int64)
    target = torch.get_default_device() if device is None else torch.device(device)
    if target.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(target, non_blocking=True)
