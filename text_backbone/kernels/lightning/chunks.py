"""The chunks of a batch, as the reference takes them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from text_backbone.packed import Packed

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


def chunked(packed: Packed) -> Chunks:
    """The batch in chunks of at most `CHUNK` tokens, of a size that divides the longest sequence evenly."""
    size, device = -(-packed.longest // -(-packed.longest // CHUNK)), packed.offsets.device
    counts = [-(-length // size) for length in packed.lengths]
    order = sorted(range(packed.sequences), key=lambda i: -counts[i])
    rank = sorted(range(packed.sequences), key=order.__getitem__)
    active = tuple(sum(count > j for count in counts) for j in range(max(counts)))
    filled = [min(size, packed.lengths[i] - j * size) for j, running in enumerate(active) for i in order[:running]]
    first = torch.tensor((0, *accumulate(active))[:-1], device=device)  # [J] number of the first j-th chunk
    ranks = torch.tensor(rank, device=device)
    number = first[packed.local_positions // size] + ranks[packed.sequence_ids]
    return Chunks(
        size=size,
        active=active,
        order=torch.tensor(order, device=device),
        rank=ranks,
        filled=torch.tensor(filled, device=device),
        rows=number * size + packed.local_positions % size,
    )
