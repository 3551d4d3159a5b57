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
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=6), st.sampled_from([(16, 16), (64, 16), (64, 64), (256, 32)])
)
def test_segments(lengths: list[int], sizes: tuple[int, int]) -> None:
    size, piece = sizes
    packed = Packed.of(lengths)
    segments = packed.segments(size, piece)
    assert packed.segments(size, piece) is segments
    chains = {sequence: (first, count, tail) for sequence, first, count, tail, *_ in segments.chains.tolist()}
    assert set(chains) == {i for i, length in enumerate(lengths) if length > size}
    pieces = segments.pieces.tolist()
    assert (len(pieces), len(chains), len(segments.table)) == (segments.cells, segments.chained, segments.count)
    reached = [0] * len(lengths)
    for start, length, sequence, before, after, last in segments.table.tolist():
        first = reached[sequence]  # it continues the segment before
        assert start == packed.starts[sequence] + first
        assert last == (first + length == lengths[sequence])
        assert length == size or (last and 0 < length < size)
        reached[sequence] += length
        if sequence in chains:
            assert before == chains[sequence][0] + first // piece
            assert after == chains[sequence][0] + (first + length - 1) // piece
            assert [pieces[cell][:2] for cell in range(before, after + 1)] == [
                [start + at, min(piece, length - at)] for at in range(0, length, piece)
            ]
            assert all(row[2:4] == [first == 0, last] for row in pieces[before : after + 1])
        else:
            assert before == after == -1
    assert reached == lengths
    for sequence, (_, count, tail) in chains.items():
        assert lengths[sequence] == (count - 1) * piece + tail


def test_segments_fall_into_whole_pieces() -> None:
    with pytest.raises(ValueError, match="pieces of 48"):
        Packed.of([100]).segments(64, 48)
