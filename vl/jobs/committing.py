"""Rows written by a thread of its own: whoever makes them does not wait for the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

from vl.jobs.duplicates import answer_key
from vl.jobs.rowfile import Row

UNDER_WAY = 4
"""Batches that may wait for the disk while others are made."""


class Sink(Protocol):
    """An open output. `append` returns the rows as they are written: what is found wrong then is an error."""

    def append(self, rows: list[Row]) -> list[Row]: ...
    def find(self, key: bytes) -> Row | None: ...


class Committer:
    """Appends batches to an open output, one after the other and in order, in its own thread; a context manager.

    Leaving it waits until all batches that it has taken are safe, also after an error or Ctrl-C elsewhere. After one
    that failed no other is written.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._pool = ThreadPoolExecutor(1, "vl-rows")
        self._under_way: deque[Future[list[Row]]] = deque()
        self._coming: dict[bytes, Row] = {}  # captions under way, by `answer_key`
        self._failed = False

    def __enter__(self) -> Committer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                self._pool.shutdown()
                break
            except KeyboardInterrupt as again:  # the output is closed next: nothing may be written to it then
                interrupt = again
        if interrupt is not None:
            raise interrupt

    def append(self, batch: list[Row]) -> None:
        """Have a batch appended."""
        for row in batch:
            if "error" not in row and (key := answer_key(row)) is not None:
                self._coming[key] = row
        self._under_way.append(self._pool.submit(self._append, batch))

    def safe(self, left: int = 0) -> Iterator[list[Row]]:
        """The batches that are safe since the last call, as they are written.

        Waits until at most `left` others are under way.

        Raises:
            JobError: as the output's `append` does; rows of batches that were not yielded are then to be made again.
        """
        while self._under_way and (len(self._under_way) > left or self._under_way[0].done()):
            written = self._under_way[0].result()
            self._under_way.popleft()
            yield written

    def find(self, key: bytes) -> Row | None:
        """As the output's, of rows that are under way too; in any thread."""
        return self._coming.get(key) or self._sink.find(key)

    def _append(self, batch: list[Row]) -> list[Row]:
        if self._failed:
            return []
        try:
            written = self._sink.append(batch)
        except BaseException:
            self._failed = True
            raise
        for row in batch:
            if self._coming.get(key := answer_key(row) or b"") is row:
                del self._coming[key]
        return written
