"""How a packed batch is shared out over context ranks: the one layout that both kinds of attention work with.

The tokens of a packed batch of any sequences are cut, where they lie, into chunks of as many tokens each, to within
one: nothing is padded or moved, and a chunk begins and ends anywhere in a sequence. Every rank holds two chunks, or
four or eight where two would not do, so chosen that all ranks have about the same causal attention to do. Of one long
sequence those are chunks r and 2 x ranks - 1 - r ("zigzag"). Of a long and many short ones, which cost next to nothing
wherever they lie, they are others: rely on what `held` says alone.

What follows for whoever computes with it:

- A rank's local batch is its chunks end to end, in the batch's order, and is `Packed` as any other: each *piece* of
  a sequence in a chunk is a sequence of its own there, whose `positions` begin where the piece does. A sequence that
  passes through two chunks of a rank makes two pieces, even where the chunks follow one another.
- Norms, projections, experts and losses know of single tokens alone, and need nothing else.
- Softmax attention: the tokens of a piece attend to all earlier pieces of their sequence, which other ranks hold.
- Lightning attention: of a chunk only its first piece can have begun before (`enters`), and only its last can go on
  after (`leaves`). So one state goes into a chunk and one comes out, however many sequences the batch has, and one
  message of a rank's states, one a chunk, is all that has to be exchanged.
- Every rank knows the pieces of every chunk (`chunks`) and who holds it (`held`) from the lengths alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from text_backbone.packed import Packed, sent

# Chunks of a rank, and how much more work than the mean a rank may have with so many, before all get more: twice
# as many make the messages of seven lightning layers twice as long, for the work of one softmax layer.
COUNTS = {2: 0.05, 4: 0.2, 8: math.inf}


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

    Whatever is cached, `past` is 0; where in their sequences the pieces begin is in `begins` and in `positions`.

    Attributes:
        begins: int64 [n], position in its sequence of each piece's first token.
        chunks: all of them, in the batch's order.
        held: by rank, the numbers of its chunks in order; as many for every rank.
        rank: which rank this is.
        cached: the whole batch, if that is one sequence which goes on from a cache and is left in it.
    """

    begins: Tensor
    chunks: tuple[Chunk, ...]
    held: tuple[tuple[int, ...], ...]
    rank: int
    cached: Packed | None = None

    @classmethod
    def share(
        cls,
        lengths: Sequence[int],
        rank: int,
        ranks: int,
        *,
        cached: Packed | None = None,
        device: torch.device | str | None = None,
    ) -> ContextShard:
        """What `rank` of `ranks` holds of sequences of `lengths` tokens.

        Raises:
            ValueError: if there are fewer tokens than two a rank, which every rank might as well compute alone.
        """
        chunks, held = lay_out(lengths, ranks, cached.pasts[0] if cached else 0)
        pieces = [piece for chunk in held[rank] for piece in chunks[chunk].pieces]
        packed = Packed.of([piece.length for piece in pieces], device=device)
        own = {f.name: getattr(packed, f.name) for f in fields(Packed) if f.init}
        begins = sent([tuple(piece.start for piece in pieces)], device)[0]
        return cls(**own, begins=begins, chunks=chunks, held=held, rank=rank, cached=cached)

    @property
    def ranks(self) -> int:
        return len(self.held)

    @property
    def own(self) -> tuple[Chunk, ...]:
        """The chunks that are here."""
        return tuple(self.chunks[i] for i in self.held[self.rank])

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


def lay_out(lengths: Sequence[int], ranks: int, past: int = 0) -> tuple[tuple[Chunk, ...], tuple[tuple[int, ...], ...]]:
    """The chunks of a batch, and who holds them; see `ContextShard`. `past`: tokens before the first sequence's."""
    tokens, best = sum(lengths), math.inf
    for count, bearable in COUNTS.items():
        if count > min(COUNTS) and tokens < count * ranks:
            break
        chunks = cut_batch(lengths, count * ranks, past)
        held, excess = deal(chunks, ranks)
        if excess < best:
            best, layout = excess, (chunks, held)
        if best <= bearable:
            break
    return layout


def cut_batch(lengths: Sequence[int], count: int, past: int = 0) -> tuple[Chunk, ...]:
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
            before = 0 if i else past
            pieces.append(Piece(i, before + begin - starts[i], end - begin, before + lengths[i]))
            first = i if starts[i + 1] > stop else i + 1
        chunks.append(Chunk(start, stop - start, tuple(pieces)))
    return tuple(chunks)


def deal(chunks: Sequence[Chunk], ranks: int) -> tuple[tuple[tuple[int, ...], ...], float]:
    """As many chunks to each rank, such that all have nearly the same cost; and by what part the dearest has more.

    The dearest chunk that is left goes to the rank that has the least so far, of those that have room.
    """
    held: list[list[int]] = [[] for _ in range(ranks)]
    costs = [0] * ranks
    for i in sorted(range(len(chunks)), key=lambda i: chunks[i].cost, reverse=True):
        rank = min((r for r in range(ranks) if len(held[r]) < len(chunks) // ranks), key=costs.__getitem__)
        held[rank].append(i)
        costs[rank] += chunks[i].cost
    return tuple(tuple(sorted(own)) for own in held), max(costs) * ranks / sum(costs) - 1
