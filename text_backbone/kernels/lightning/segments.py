"""The segments of a batch, as the kernels take them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from text_backbone.kernels.lightning.link import Link
from text_backbone.packed import Packed, sent


@dataclass(frozen=True, eq=False)
class Segments:
    """How the sequences of a batch fall into segments, the units of work of the chunked linear attention kernels.

    A sequence longer than `size`, or of a link, is a chain: segments of `size` tokens, the last one maybe shorter. A
    chain falls also into pieces of `piece` tokens, each of which has a cell to keep a state in; the cells of a chain
    follow one another.
    Segments of chains come first, ordered by index within the chain, so that the longest are not started last.

    Attributes:
        size, piece: tokens of a segment and of a piece, at most; `size` is a multiple of `piece`.
        count, cells, chained: segments, pieces, and chains.
        table: int64 [count, 6]; first row, tokens, sequence, cells of its first and of its last piece (-1 outside
            chains), 1 if last of its sequence.
        pieces: int64 [cells, 6]; first row, tokens, 1 if no segment comes before it that needs to know of it, 1 if none
            comes after it, 0, 0.
        chains: int64 [chained, 6]; sequence, first cell, pieces, tokens of the last piece, its number among those that
            the link's sequences take and give (-1 if none).
        link: the sequences that begin or go on elsewhere, if there are any.
    """

    size: int
    piece: int
    count: int
    cells: int
    chained: int
    table: Tensor
    pieces: Tensor
    chains: Tensor
    link: Link | None


def cut(packed: Packed, size: int, piece: int, link: Link | None = None) -> Segments:
    """The batch in segments of `size` tokens and pieces of `piece`.

    Raises:
        ValueError: if `size` is not a multiple of `piece`.
    """
    if size % piece:
        raise ValueError(f"segments of {size} tokens do not fall into pieces of {piece}")
    takes, gives = (
        {i: at for at, i in enumerate(linked)} for linked in ((link.takes, link.gives) if link else ((), ()))
    )
    chained: list[tuple[int, tuple[int, ...]]] = []  # index within the chain, row of the table
    alone: list[tuple[int, ...]] = []
    pieces: list[tuple[int, ...]] = []
    chains: list[tuple[int, ...]] = []
    for i, (start, length) in enumerate(zip(packed.starts, packed.lengths, strict=True)):
        if length <= size and i not in takes and i not in gives:
            alone.append((start, length, i, -1, -1, 1))
            continue
        cell, final = len(pieces), (length - 1) // size * size  # where the last segment begins
        for first in range(0, length, piece):
            unseen = first < size and i not in takes, first >= final and i not in gives
            pieces.append((start + first, min(piece, length - first), *unseen, 0, 0))
        for first in range(0, length, size):
            tokens = min(size, length - first)
            cells = cell + first // piece, cell + (first + tokens - 1) // piece
            chained.append((first, (start + first, tokens, i, *cells, first == final)))
        chains.append((i, cell, len(pieces) - cell, pieces[-1][1], takes.get(i, -1), gives.get(i, -1)))
    chained.sort()
    table = [row for _, row in chained] + alone
    # One copy to the device; every part of it at a 16-byte boundary, for which kernels are compiled.
    parts = sent((*table, *pieces, *chains), packed.offsets.device)
    counts = len(table), len(pieces), len(chains)
    segments, of_chains, ends = parts.split(counts)
    return Segments(size, piece, *counts, segments, of_chains, ends, link)
