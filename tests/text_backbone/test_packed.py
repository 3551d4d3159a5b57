from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from text_backbone import Packed
from text_backbone.packed import CHUNK


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3 * CHUNK), st.integers(0, 1000)), min_size=1, max_size=6))
def test_positions_and_chunks(shape: list[tuple[int, int]]) -> None:
    lengths, past = [s[0] for s in shape], [s[1] for s in shape]
    packed = Packed.of(lengths, past=past)
    assert packed.tokens == sum(lengths)
    assert packed.positions.tolist() == [p + t for n, p in shape for t in range(n)]
    assert packed.sequence_ids.tolist() == [i for i, n in enumerate(lengths) for _ in range(n)]

    chunks, size = packed.chunks, packed.chunks.size
    assert sum(chunks.active) == len(chunks.filled) == sum(-(-n // size) for n in lengths)
    assert int(chunks.filled.sum()) == packed.tokens
    assert chunks.rank[chunks.order].tolist() == list(range(len(lengths)))
    for start, length, rank in zip(packed.starts, lengths, chunks.rank.tolist(), strict=True):
        for t in range(length):
            chunk, within = divmod(int(chunks.rows[start + t]), size)
            j = t // size
            assert chunk == sum(chunks.active[:j]) + rank
            assert within == t % size < chunks.filled[chunk]


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([], {}, "at least one sequence"),
        ([3, 0], {}, "at least one token"),
        ([3, 2], {"past": [1]}, "one per sequence"),
        ([3], {"past": [-1]}, "cannot be negative"),
        ([3, 2], {"slots": [1, 1]}, "slot of its own"),
        ([3], {"slots": [-1]}, "slot of its own"),
    ],
)
def test_bad_batches_are_refused(lengths: list[int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Packed.of(lengths, **options)


def test_positions_are_64_bit() -> None:
    packed = Packed.of([2], past=[2**31])
    assert packed.positions.dtype == torch.int64
    assert packed.positions.tolist() == [2**31, 2**31 + 1]


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.sampled_from([16, 64, 256]))
def test_segments(lengths: list[int], size: int) -> None:
    packed = Packed.of(lengths)
    segments = packed.segments(size)
    assert packed.segments(size) is segments
    covered: list[int] = []
    reached = [0] * len(lengths)
    for start, length, sequence, cell, last in segments.table.tolist():
        assert start == packed.starts[sequence] + reached[sequence]  # after the segment it continues
        assert last == (start + length == packed.starts[sequence] + lengths[sequence])
        assert length == size or (last and 0 < length < size)
        assert (cell >= 0) == (lengths[sequence] > size)
        reached[sequence] += length
        covered += range(start, start + length)
    assert sorted(covered) == list(range(packed.tokens))
    in_chains = segments.table[: segments.cells].tolist()
    assert (segments.table[segments.cells :, 3] == -1).all()
    rows = {(sequence, cell): (start, length) for start, length, sequence, cell, _ in in_chains}
    assert sorted(cell for _, cell in rows) == list(range(segments.cells))
    assert len(segments.chains) == segments.chained
    for sequence, first, count, tail, _ in segments.chains.tolist():
        assert lengths[sequence] == (count - 1) * size + tail
        chain = [rows[sequence, first + j] for j in range(count)]
        assert [row[0] for row in chain] == [packed.starts[sequence] + j * size for j in range(count)]
