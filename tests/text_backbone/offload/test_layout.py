"""Which cached tokens come with which load, as plain numbers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from text_backbone.offload.layout import Loads, spans

DEVICE_PAGES = 6


@given(data=st.data(), size=st.integers(1, 5), room=st.integers(1, 4))
def test_every_cached_token_is_found_once(data: st.DataObject, size: int, room: int) -> None:
    loads = Loads(DEVICE_PAGES, size, room)
    owned = data.draw(st.lists(st.lists(st.integers(0, 20), max_size=12, unique=True), max_size=4))
    pasts = []
    for pages in owned:
        tokens = data.draw(st.integers(0, len(pages) * size))
        pasts.append((pages, tokens, loads.take(pages, tokens)))
    for pages, tokens, past in pasts:
        rows = [(page, row) for page in pages for row in range(size)][:tokens]
        found = [(page, row) for page in past.near for row in range(size)][: past.near_tokens]
        for piece in past.pieces:
            there = loads.pages[piece.load][piece.at :]
            some = [(page + DEVICE_PAGES, row) for page in there for row in range(size)][: piece.tokens]
            assert len(some) == piece.tokens > 0
            found += some
        assert sorted(found) == sorted(rows)
        assert len(past.near) == len({page for page, _ in rows if page < DEVICE_PAGES})
    order = [(piece.load, piece.at) for *_, past in pasts for piece in past.pieces]
    assert order == sorted(order), "loads are asked for in the order in which they come"
    assert all(len(pages) == room for pages in loads.pages[:-1])
    assert all(0 < len(pages) <= room for pages in loads.pages)


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(1, 3)), max_size=12))
def test_rows_that_lie_end_to_end_are_copied_in_one_go(blocks: list[tuple[int, int]]) -> None:
    """Blocks of 3 rows, of which some are short; four blocks are a segment."""
    rows, at = [], 0
    for block, count in blocks:
        rows.append((at, 3 * block, count))
        at += count
    found = spans(iter(rows), 12)
    assert [(s.at + i, 12 * s.segment + s.first + i) for s in found for i in range(s.count)] == [
        (here + i, there + i) for here, there, count in rows for i in range(count)
    ]
    for one, two in pairwise(found):
        assert (one.segment, one.first + one.count) != (two.segment, two.first)
    assert all(s.first + s.count <= 12 for s in found)
