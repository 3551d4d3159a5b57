"""The segments of a batch, as the kernels take them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from text_backbone.packed import Packed, sent


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


def cut(packed: Packed, size: int, piece: int) -> Segments:
    """The batch in segments of `size` tokens and pieces of `piece`.

    Raises:
        ValueError: if `size` is not a multiple of `piece`.
    """
    if size % piece:
        raise ValueError(f"segments of {size} tokens do not fall into pieces of {piece}")
    chained: list[tuple[int, tuple[int, ...]]] = []  # index within the chain, row of the table
    alone: list[tuple[int, ...]] = []
    pieces: list[tuple[int, ...]] = []
    chains: list[tuple[int, ...]] = []
    for i, (start, length) in enumerate(zip(packed.starts, packed.lengths, strict=True)):
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
    parts = sent((*table, *((*row, 0, 0) for row in (*pieces, *chains))), packed.offsets.device)
    counts = len(table), len(pieces), len(chains)
    return Segments(size, piece, *counts, *parts.split(counts))
