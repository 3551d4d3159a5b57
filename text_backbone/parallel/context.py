"""How a packed batch is shared out over context ranks: the one layout that both kinds of attention work with.

The tokens of a packed batch of any sequences are cut, where they lie, into 2 x ranks chunks of as many tokens each, to
within one: nothing is padded or moved, and a chunk begins and ends anywhere in a sequence. Every rank holds two chunks,
so paired that all ranks have about the same causal attention to do: with the chunks in the order of what they cost, the
first and the last, the second and the last but one, and so on. Of one long sequence those are chunks r and
2 x ranks - 1 - r ("zigzag"). Of a long and many short ones, which cost next to nothing wherever they lie, they are
others: rely on what `held` says alone.

What follows for whoever computes with it:

- A rank's local batch is its two chunks end to end, in the batch's order, and is `Packed` as any other: each *piece* of
  a sequence in a chunk is a sequence of its own there, whose `positions` begin where the piece does. A sequence that
  passes through both chunks of a rank makes two pieces, even where the chunks follow one another.
- Norms, projections, experts and losses know of single tokens alone, and need nothing else.
- Softmax attention: the tokens of a piece attend to all earlier pieces of their sequence, which other ranks hold.
- Lightning attention: of a chunk only its first piece can have begun before (`enters`), and only its last can go on
  after (`leaves`). So one state goes into a chunk and one comes out, however many sequences the batch has, and one
  message of two states a rank is all that has to be exchanged.
- Every rank knows the pieces of every chunk (`chunks`) and who holds it (`held`) from the lengths alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from text_backbone.packed import Packed, sent


@dataclass(frozen=True)
class Piece:
    """What a chunk has of one sequence.

    Attributes:
        sequence: its number in the whole batch.
        start: position in the sequence of the piece's first token.
        length: tokens of the piece.
        whole: tokens of the sequence.
    """

    sequence: int
    start: int
    length: int
    whole: int

    @property
    def enters(self) -> bool:
        """Whether the sequence began in an earlier chunk."""
        return self.start > 0

    @property
    def leaves(self) -> bool:
        """Whether the sequence goes on in the next chunk."""
        return self.start + self.length < self.whole


@dataclass(frozen=True)
class Chunk:
    """A run of the batch's tokens.

    Attributes:
        start, length: its first row in the whole batch, and its tokens.
        pieces: what it has of each sequence, in order.
    """

    start: int
    length: int
    pieces: tuple[Piece, ...]

    @property
    def cost(self) -> int:
        """Pairs of a token and one that it attends to, twice."""
        return sum(piece.length * (2 * piece.start + piece.length + 1) for piece in self.pieces)


@dataclass(frozen=True, eq=False)
class ContextShard(Packed):
    """The tokens of a packed batch that one context rank holds, as a batch: see above.

    As nothing is cached, `past` is 0; where in their sequences the pieces begin is in `begins` and in `positions`.

    Attributes:
        begins: int64 [n], position in its sequence of each piece's first token.
        chunks: all of them, in the batch's order.
        held: by rank, the numbers of its two chunks, the earlier one first.
        rank: which rank this is.
    """

    begins: Tensor
    chunks: tuple[Chunk, ...]
    held: tuple[tuple[int, int], ...]
    rank: int

    @classmethod
    def share(
        cls, lengths: Sequence[int], rank: int, ranks: int, *, device: torch.device | str | None = None
    ) -> ContextShard:
        """What `rank` of `ranks` holds of sequences of `lengths` tokens.

        Raises:
            ValueError: if there are fewer tokens than chunks, which every rank might as well compute alone.
        """
        chunks = cut_batch(lengths, 2 * ranks)
        held = pair_chunks(chunks)
        pieces = [piece for chunk in held[rank] for piece in chunks[chunk].pieces]
        packed = Packed.of([piece.length for piece in pieces], device=device)
        own = {f.name: getattr(packed, f.name) for f in fields(Packed) if f.init}
        begins = sent([tuple(piece.start for piece in pieces)], device)[0]
        return cls(**own, begins=begins, chunks=chunks, held=held, rank=rank)

    @property
    def ranks(self) -> int:
        return len(self.held)

    @property
    def own(self) -> tuple[Chunk, Chunk]:
        """The two chunks that are here."""
        first, second = self.held[self.rank]
        return self.chunks[first], self.chunks[second]

    @cached_property
    def positions(self) -> Tensor:
        """int64 [T], position of each token in its whole sequence."""
        return self.local_positions + self.begins[self.sequence_ids]

    @cached_property
    def rows(self) -> Tensor:
        """int64 [T], the row of each token in the whole batch."""
        device = self.offsets.device
        return torch.cat([torch.arange(c.start, c.start + c.length, device=device) for c in self.own])

    def take(self, whole: Tensor) -> Tensor:
        """The rows [T, ...] that are here of a tensor that has one for each token of the whole batch."""
        return torch.cat([whole[chunk.start : chunk.start + chunk.length] for chunk in self.own])


def cut_batch(lengths: Sequence[int], count: int) -> tuple[Chunk, ...]:
    """Sequences of `lengths` tokens, end to end, in `count` chunks of as many tokens each, to within one.

    Raises:
        ValueError: if a chunk would have none.
    """
    starts = tuple(accumulate(lengths, initial=0))
    tokens = starts[-1]
    if tokens < count:
        raise ValueError(f"{tokens} tokens cannot be shared out in {count} chunks: compute such a batch on every rank")
    chunks, first = [], 0  # the sequence that the next chunk begins in
    for start, stop in pairwise(tokens * i // count for i in range(count + 1)):
        pieces = []
        for i in range(first, len(lengths)):
            if starts[i] >= stop:
                break
            begin, end = max(start, starts[i]), min(stop, starts[i + 1])
            pieces.append(Piece(i, begin - starts[i], end - begin, lengths[i]))
            first = i if starts[i + 1] > stop else i + 1
        chunks.append(Chunk(start, stop - start, tuple(pieces)))
    return tuple(chunks)


def pair_chunks(chunks: Sequence[Chunk]) -> tuple[tuple[int, int], ...]:
    """Two chunks for each rank, such that all ranks have nearly the same cost."""
    order = sorted(range(len(chunks)), key=lambda i: chunks[i].cost)
    pairs = zip(order, reversed(order[len(order) // 2 :]), strict=False)
    return tuple((min(pair), max(pair)) for pair in pairs)
