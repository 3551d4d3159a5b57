"""The layout of a packed batch over context ranks."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from text_backbone import Packed
from text_backbone.parallel.context import ContextShard, cut_batch

batches = st.tuples(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 5)).filter(
    lambda batch: sum(batch[0]) >= 2 * batch[1]
)


@settings(deadline=None)
@given(batches)
@example(([1] * 8, 4))
@example(([8, 8, 8, 8], 2))
@example(([100], 4))
def test_every_token_is_on_one_rank_at_its_position(batch: tuple[list[int], int]) -> None:
    lengths, ranks = batch
    whole = Packed.of(lengths)
    shards = [ContextShard.share(lengths, rank, ranks) for rank in range(ranks)]
    rows = torch.cat([shard.rows for shard in shards])
    assert rows.sort().values.tolist() == list(range(sum(lengths)))
    for rank, shard in enumerate(shards):
        assert (shard.rank, shard.ranks) == (rank, ranks)
        assert shard.take(whole.positions).tolist() == shard.positions.tolist()
        assert shard.take(torch.arange(whole.tokens)).tolist() == shard.rows.tolist()
        assert abs(shard.tokens - sum(lengths) / ranks) < len(shard.own)
        assert len(shard.own) in (2, 4, 8)
        assert not any(shard.pasts)


@settings(deadline=None)
@given(batches)
def test_pieces_are_those_of_the_sequences_in_order(batch: tuple[list[int], int]) -> None:
    lengths, ranks = batch
    chunks = cut_batch(lengths, 2 * ranks)
    starts = list(accumulate(lengths, initial=0))
    pieces = [piece for chunk in chunks for piece in chunk.pieces]
    rows = [(starts[p.sequence] + p.start, p.length) for p in pieces]
    assert [start for start, _ in rows] == list(accumulate((length for _, length in rows), initial=0))[:-1]
    assert [p.sequence for p in pieces if not p.enters] == list(range(len(lengths)))
    for chunk, after in zip(chunks, [*chunks[1:], None], strict=True):
        assert chunk.length == sum(piece.length for piece in chunk.pieces)
        assert not any(piece.enters for piece in chunk.pieces[1:])
        assert not any(piece.leaves for piece in chunk.pieces[:-1])
        assert chunk.pieces[-1].leaves == (after is not None and after.pieces[0].enters)
    costs = [sum(2 * (p.start + t + 1) for p in c.pieces for t in range(p.length)) for c in chunks]
    assert [chunk.cost for chunk in chunks] == costs


def test_one_sequence_is_shared_in_a_zigzag() -> None:
    shards = [ContextShard.share([800], rank, 4) for rank in range(4)]
    assert shards[0].held == ((0, 7), (1, 6), (2, 5), (3, 4))
    assert [sum(chunk.cost for chunk in shard.own) for shard in shards] == [800 * 801 // 4] * 4


def test_the_cost_is_even_wherever_the_long_sequence_lies() -> None:
    """Chunks r and 2 x ranks - 1 - r would cost 1 and 8 here, and of any two chunks a rank the dearest pair 5 of 9."""
    for lengths in ([300, *[1] * 100], [*[1] * 100, 300]):
        shards = [ContextShard.share(lengths, rank, 2) for rank in range(2)]
        costs = [sum(chunk.cost for chunk in shard.own) for shard in shards]
        assert max(costs) < 1.06 * sum(costs) / 2
        assert [len(shard.own) for shard in shards] == [4, 4]


def test_the_cost_is_even_in_real_batches() -> None:
    """Documents of log-normal lengths, cut off at the end of the batch."""
    generator, worse = torch.Generator().manual_seed(0), 0
    for _ in range(20):
        drawn = torch.empty(400).log_normal_(8.5, 1.5, generator=generator).long() + 1
        lengths = drawn[: int((drawn.cumsum(0) < 2**17).sum()) + 1].tolist()
        lengths[-1] -= sum(lengths) - 2**17
        for ranks in (2, 8):
            costs = [sum(chunk.cost for chunk in ContextShard.share(lengths, r, ranks).own) for r in range(ranks)]
            assert max(costs) < 1.2 * sum(costs) / ranks
            worse += max(costs) > 1.1 * sum(costs) / ranks
    assert worse < 8


def test_fewer_tokens_than_chunks_are_refused() -> None:
    with pytest.raises(ValueError, match="3 tokens cannot be shared out in 4 chunks"):
        ContextShard.share([2, 1], 0, 2)
