"""Which blocks of the attention of a shared-out batch a rank computes, and which keys travel for it: plain data.

Every rank attends from the queries that it holds, to its own keys and then to those of the rank before it, of the one
before that, and so on around the ring. A piece of a sequence sees all of an earlier piece and nothing of a later one;
so what a rank computes with another's keys are whole rectangles, without a mask. With its own keys it is causal
attention within its own sequences: two pieces of one sequence lie end to end here, and what lies between them in the
sequence is on other ranks.

Few pieces see keys of other ranks: of a chunk the first alone, if it began before. So however many sequences there are,
a step has four rectangles at most, and keys that no query of a rank sees do not travel to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from text_backbone.packed import Packed
from text_backbone.parallel.context import ContextShard


@dataclass(frozen=True)
class Product:
    """Some of a rank's queries that see all of some keys.

    Attributes:
        queries: rows of the rank's batch.
        keys: rows of what arrives in the step.
    """

    queries: slice
    keys: slice


@dataclass(frozen=True)
class Step:
    """What a rank does with another's keys, and for another with its own.

    Attributes:
        source: the rank whose keys arrive.
        arriving: how many of them do.
        products: what is computed with them.
        to: the rank that gets keys of this one in the same step.
        sent: which of its rows those are.
    """

    source: int
    arriving: int
    products: tuple[Product, ...]
    to: int
    sent: tuple[slice, ...]


@dataclass(frozen=True)
class Plan:
    """A rank's part of the attention.

    Attributes:
        lengths: of its own sequences, causal attention within which is the first thing to compute.
        steps: what follows, for each other rank.
        seeing: rows of its batch that see keys of other ranks, in separate runs.
    """

    lengths: tuple[int, ...]
    steps: tuple[Step, ...]
    seeing: tuple[slice, ...]


def plan_attention(shard: Packed) -> Plan:
    """The part of the rank that a `ContextShard` is of."""
    assert isinstance(shard, ContextShard)
    rank, ranks = shard.rank, shard.ranks
    held = [_pieces(shard, r) for r in range(ranks)]
    steps = []
    for distance in range(1, ranks):
        source, to = (rank - distance) % ranks, (rank + distance) % ranks
        arriving, products = _seen(held[rank], held[source])
        sent, _ = _seen(held[to], held[rank])
        count = sum(rows.stop - rows.start for rows in arriving)
        steps.append(Step(source, count, products, to, sent))
    seeing = _union([product.queries for step in steps for product in step.products])
    return Plan(_own_lengths(held[rank]), tuple(steps), seeing)


@dataclass(frozen=True)
class _Piece:
    """`rows` of a rank's batch that are a sequence's from position `start` on."""

    sequence: int
    start: int
    rows: slice
    enters: bool
    leaves: bool


def _pieces(shard: ContextShard, rank: int) -> list[_Piece]:
    found, row = [], 0
    for chunk in shard.held[rank]:
        for piece in shard.chunks[chunk].pieces:
            rows = slice(row, row + piece.length)
            found.append(_Piece(piece.sequence, piece.start, rows, piece.enters, piece.leaves))
            row = rows.stop
    return found


def _own_lengths(pieces: list[_Piece]) -> tuple[int, ...]:
    """Pieces of one sequence are neighbours, and one sequence to causal attention: what is between them is not here."""
    lengths: dict[int, int] = {}
    for piece in pieces:
        lengths[piece.sequence] = lengths.get(piece.sequence, 0) + piece.rows.stop - piece.rows.start
    return tuple(lengths.values())


def _seen(queries: list[_Piece], keys: list[_Piece]) -> tuple[tuple[slice, ...], tuple[Product, ...]]:
    """The rows of `keys`, another rank's, that any of `queries` sees; and which queries see which of those rows."""
    seeing = [piece for piece in queries if piece.enters]
    places: dict[int, slice] = {}  # of a piece among the rows that are seen, by its first row
    arriving, count = [], 0
    for piece in keys:
        if piece.leaves and any(_sees(query, piece) for query in seeing):
            length = piece.rows.stop - piece.rows.start
            places[piece.rows.start] = slice(count, count + length)
            arriving.append(piece.rows)
            count += length
    products: list[Product] = []
    for query in seeing:
        seen = [places[piece.rows.start] for piece in keys if piece.rows.start in places and _sees(query, piece)]
        for run in _union(seen):
            products = _with(products, Product(query.rows, run))
    return _union(arriving), tuple(products)


def _sees(query: _Piece, key: _Piece) -> bool:
    return query.sequence == key.sequence and query.start > key.start


def _with(products: list[Product], new: Product) -> list[Product]:
    """The products and a new one, which is joined to the last if the two see the same keys and follow each other."""
    last = products[-1] if products else None
    if last is not None and last.keys == new.keys and last.queries.stop == new.queries.start:
        return [*products[:-1], Product(slice(last.queries.start, new.queries.stop), new.keys)]
    return [*products, new]


def _union(runs: list[slice]) -> tuple[slice, ...]:
    """The same rows in as few runs as can be, in order."""
    joined: list[slice] = []
    for run in sorted(runs, key=lambda run: (run.start, run.stop)):
        if joined and run.start <= joined[-1].stop:
            joined[-1] = slice(joined[-1].start, max(joined[-1].stop, run.stop))
        else:
            joined.append(run)
    return tuple(joined)
