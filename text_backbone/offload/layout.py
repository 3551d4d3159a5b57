"""What of a batch's past is in host memory, and in which loads it comes to the device. Plain data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """Cached tokens of a sequence that come with one load: they begin at page `at` of the buffer."""

    load: int
    at: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Past:
    """The cached tokens of a sequence, by where they are.

    Attributes:
        near: pages on the device that hold `near_tokens` of them.
        pieces: the others.
    """

    near: tuple[int, ...]
    near_tokens: int
    pieces: tuple[Piece, ...]


class Loads:
    """Pages of the host, in the order in which a pass needs them, as many at a time as a buffer holds.

    Attributes:
        pages: of each load, their numbers among the host's.
    """

    def __init__(self, device_pages: int, page_size: int, room: int) -> None:
        self.pages: list[list[int]] = []
        self._device_pages, self._page_size, self._room = device_pages, page_size, room

    def take(self, pages: Sequence[int], tokens: int) -> Past:
        """Take in the next sequence: its first `tokens` tokens, which fill its first pages but for the last of them."""
        count = -(-tokens // self._page_size)
        spare = count * self._page_size - tokens  # rows of its last page that hold nothing yet
        near = tuple(page for page in pages[:count] if page < self._device_pages)
        far = [page - self._device_pages for page in pages[:count] if page >= self._device_pages]
        ends_far = count > 0 and pages[count - 1] >= self._device_pages
        pieces = tuple(self._pieces(far, len(far) * self._page_size - ends_far * spare))
        return Past(near, len(near) * self._page_size - (not ends_far) * spare, pieces)

    def _pieces(self, far: Sequence[int], tokens: int) -> Iterator[Piece]:
        start = 0
        while start < len(far):
            if not self.pages or len(self.pages[-1]) == self._room:
                self.pages.append([])
            load = self.pages[-1]
            some = far[start : start + self._room - len(load)]
            start += len(some)
            held = min(tokens, len(some) * self._page_size)
            tokens -= held
            yield Piece(len(self.pages) - 1, len(load), held)
            load += some


@dataclass(frozen=True, slots=True)
class Span:
    """`count` rows that lie end to end on both sides: from `at` here, and from `first` in a segment of the host's."""

    at: int
    segment: int
    first: int
    count: int


def spans(rows: Iterator[tuple[int, int, int]], segment_rows: int) -> list[Span]:
    """Runs of rows to be copied, joined where they can be.

    Args:
        rows: (first row here, first row in the host's memory as a whole, how many); none crosses a segment's end.
        segment_rows: of the host's memory, in one piece.
    """
    joined: list[Span] = []
    for at, there, count in rows:
        segment, first = divmod(there, segment_rows)
        if joined:
            last = joined[-1]
            end = last.at + last.count, last.segment, last.first + last.count
            if end == (at, segment, first):
                joined[-1] = Span(last.at, segment, last.first, last.count + count)
                continue
        joined.append(Span(at, segment, first, count))
    return joined
