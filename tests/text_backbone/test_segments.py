"""How batches fall into the chunks and segments of lightning attention."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text_backbone import Packed
from text_backbone.kernels.lightning.chunks import CHUNK, chunked
from text_backbone.kernels.lightning.link import Link
from text_backbone.kernels.lightning.segments import cut


@settings(deadline=None)
@given(st.lists(st.integers(1, 3 * CHUNK), min_size=1, max_size=6))
def test_chunks(lengths: list[int]) -> None:
    packed = Packed.of(lengths)
    chunks = chunked(packed)
    size = chunks.size
    assert sum(chunks.active) == len(chunks.filled) == sum(-(-n // size) for n in lengths)
    assert int(chunks.filled.sum()) == packed.tokens
    assert chunks.rank[chunks.order].tolist() == list(range(len(lengths)))
    for start, length, rank in zip(packed.starts, lengths, chunks.rank.tolist(), strict=True):
        for t in range(length):
            chunk, within = divmod(int(chunks.rows[start + t]), size)
            j = t // size
            assert chunk == sum(chunks.active[:j]) + rank
            assert within == t % size < chunks.filled[chunk]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=6),
    st.sampled_from([(16, 16), (64, 16), (64, 64), (256, 32)]),
    st.lists(st.integers(0, 5), unique=True),
    st.lists(st.integers(0, 5), unique=True),
)
def test_segments(lengths: list[int], sizes: tuple[int, int], begun: list[int], left: list[int]) -> None:
    size, piece = sizes
    packed = Packed.of(lengths)
    takes, gives = (tuple(i for i in linked if i < len(lengths)) for linked in (begun, left))
    link = Link(takes, gives, lambda *args: args[0]) if takes or gives else None
    segments = cut(packed, size, piece, link)
    assert segments.link is link
    chains = {sequence: (first, count, tail) for sequence, first, count, tail, *_ in segments.chains.tolist()}
    assert set(chains) == {i for i, length in enumerate(lengths) if length > size or i in takes or i in gives}
    for sequence, *_, taken, given_ in segments.chains.tolist():
        assert taken == (takes.index(sequence) if sequence in takes else -1)
        assert given_ == (gives.index(sequence) if sequence in gives else -1)
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
            needless = [first == 0 and sequence not in takes, last and sequence not in gives]
            assert all(row[2:4] == needless for row in pieces[before : after + 1])
        else:
            assert before == after == -1
    assert reached == lengths
    for sequence, (_, count, tail) in chains.items():
        assert lengths[sequence] == (count - 1) * piece + tail


def test_segments_fall_into_whole_pieces() -> None:
    with pytest.raises(ValueError, match="pieces of 48"):
        cut(Packed.of([100]), 64, 48)
