"""The blocks that ranks compute are, together, the causal mask of the whole batch."""

from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from text_backbone.parallel.blocks import Plan, plan_attention
from text_backbone.parallel.context import ContextShard

batches = st.tuples(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 5)).filter(
    lambda batch: sum(batch[0]) >= 2 * batch[1]
)


def shards_of(lengths: list[int], ranks: int) -> list[ContextShard]:
    return [ContextShard.share(lengths, rank, ranks) for rank in range(ranks)]


def rows_of(slices: tuple[slice, ...], of: Tensor) -> Tensor:
    return torch.cat([of[rows] for rows in slices]) if slices else of[:0]


@settings(deadline=None)
@given(batches)
@example(([100], 4))
@example(([8, 8, 8, 8], 2))
@example(([1] * 8, 4))
@example(([5, 30, 5], 2))
def test_every_pair_is_computed_once(batch: tuple[list[int], int]) -> None:
    lengths, ranks = batch
    shards = shards_of(lengths, ranks)
    plans = [plan_attention(shard) for shard in shards]
    found = torch.zeros(sum(lengths), sum(lengths), dtype=torch.int64)
    for shard, plan in zip(shards, plans, strict=True):
        start = 0
        for length in plan.lengths:
            rows = shard.rows[start : start + length]
            found[rows[:, None], rows] += torch.ones(length, length, dtype=torch.int64).tril()
            start += length
        assert start == shard.tokens
        for step in plan.steps:
            (sent,) = (s for s in plans[step.source].steps if s.to == shard.rank)
            keys = rows_of(sent.sent, shards[step.source].rows)
            assert len(keys) == step.arriving
            for product in step.products:
                found[shard.rows[product.queries][:, None], keys[product.keys]] += 1
    blocks = [torch.ones(length, length, dtype=torch.int64).tril() for length in lengths]
    assert torch.equal(found, torch.block_diag(*blocks))


@settings(deadline=None)
@given(batches)
def test_what_travels_is_needed(batch: tuple[list[int], int]) -> None:
    for shard in shards_of(*batch):
        plan = plan_attention(shard)
        for distance, step in enumerate(plan.steps, 1):
            assert (step.source, step.to) == (
                (shard.rank - distance) % shard.ranks,
                (shard.rank + distance) % shard.ranks,
            )
            seen = torch.zeros(step.arriving, dtype=torch.bool)
            for product in step.products:
                seen[product.keys] = True
            assert seen.all()
            assert len(step.products) <= len(shard.own) * (len(shard.own) + 1) // 2
        check_seeing(plan, shard.tokens)


def check_seeing(plan: Plan, tokens: int) -> None:
    """The runs that see keys of others hold all rows of products, and no others; each product is within one."""
    mine, theirs = torch.zeros(tokens, dtype=torch.bool), torch.zeros(tokens, dtype=torch.bool)
    for run in plan.seeing:
        assert not mine[max(0, run.start - 1) : run.stop + 1].any()
        mine[run] = True
    for step in plan.steps:
        for product in step.products:
            theirs[product.queries] = True
            assert any(r.start <= product.queries.start < product.queries.stop <= r.stop for r in plan.seeing)
    assert torch.equal(mine, theirs)


def test_one_sequence_is_two_rectangles_of_one_size_a_step() -> None:
    """Rank 1 of 4 has chunks 1 and 6: both see chunk 0, none sees 7, and 6 sees 3 and 4, 2 and 5."""
    plan = plan_attention(ContextShard.share([80], 1, 4))
    assert plan.lengths == (20,)
    assert plan.seeing == (slice(0, 20),)
    told = [(s.source, s.arriving, s.to, s.sent) for s in plan.steps]
    first, both = (slice(0, 10),), (slice(0, 20),)
    assert told == [(0, 10, 2, first), (3, 20, 3, first), (2, 20, 0, both)]
    products = [[(p.queries, p.keys) for p in s.products] for s in plan.steps]
    late = [(slice(10, 20), slice(0, 20))]
    assert products == [[(slice(0, 20), slice(0, 10))], late, late]


def test_short_sequences_stay_where_they_are() -> None:
    """Only the sequence that lies across a boundary makes keys travel, and only its own."""
    plans = [plan_attention(shard) for shard in shards_of([4, 4, 5, 3, 4, 4], 3)]  # 24 tokens, chunks of 4
    moved = [(plan.steps[i].sent, plan.steps[i].to) for plan in plans for i in range(2) if plan.steps[i].sent]
    assert len(moved) == 1
    ((sent, _),) = moved
    assert sum(rows.stop - rows.start for rows in sent) == 4
