"""From sources to results: threads prepare what comes next while the engine writes what came before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from vl.engine import Generation, SamplingParams
from vl.errors import Error, InputError

_WAITING = 1000  # results that are kept at most because an earlier source is not ready


class Request(Protocol):
    """One answer that is being written. `error` is what is wrong with it alone; `result` raises that and all else."""

    @property
    def done(self) -> bool: ...
    @property
    def error(self) -> BaseException | None: ...
    def result(self) -> Generation: ...


class Answering(Protocol):
    """What the pipeline asks of an engine."""

    def submit(self, inputs: Any, params: SamplingParams) -> Any: ...
    def step(self) -> None: ...
    def cancel(self, request: Any) -> None: ...


class Item(Protocol):
    """A source on its way to a result.

    `inputs` wait for an answer, if there are any; `done` says that it has its result. An answer that leaves inputs is
    followed by theirs: what the engine read for the first is then still there.
    """

    inputs: Any

    @property
    def done(self) -> bool: ...

    def succeed(self, generation: Generation) -> None: ...
    def fail(self, error: Exception) -> None: ...


Source = TypeVar("Source")
AnItem = TypeVar("AnItem", bound=Item)


def answered(
    engine: Answering,
    sources: Iterable[Source],
    prepare: Callable[[Source], AnItem],
    params: SamplingParams,
    *,
    batch_size: int,
    workers: int | None = None,
) -> Generator[AnItem, None, None]:
    """The items of `sources` with their results, in order.

    The engine writes up to `batch_size` answers at once, and takes the next item as soon as one is done. Twice as many
    are prepared ahead of it at most, so memory is bounded whatever the number of sources. Of a window of those, the
    longest prompt that is ready goes first: none is late in coming, and small ones fill what is left.

    Args:
        engine: what answers.
        sources: read in the caller's thread.
        prepare: makes a source's item, in a thread; whatever is wrong with the source is for it to catch.
        params: how answers are written.
        batch_size: answers that are written at once; the engine's own `max_batch_size` bounds it too.
        workers: threads; by default a few more than there are cores.

    Raises:
        InputError: if `batch_size` is below 1. Errors of single items that are a `vl.Error` are theirs; others end it.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    return _answered(engine, sources, prepare, params, batch_size, workers)


def _answered(
    engine: Answering,
    sources: Iterable[Source],
    prepare: Callable[[Source], AnItem],
    params: SamplingParams,
    batch_size: int,
    workers: int | None,
) -> Generator[AnItem, None, None]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vl-images")
    writing: list[tuple[AnItem, Request]] = []
    ahead = _Ahead(pool, prepare, iter(sources), batch_size)
    try:
        ahead.fill()
        while ahead or ahead.line:
            # Only an idle engine waits for an image.
            while len(writing) < batch_size and (len(ahead.line) < _WAITING or not writing):
                if (item := ahead.take(wait=not writing)) is None:
                    break
                writing += _submitted(engine, item, params)
            if writing:
                engine.step()
                writing = [pair for item, request in writing for pair in _after_step(engine, item, request, params)]
            yield from ahead.finished()
    finally:
        for _, request in writing:
            engine.cancel(request)
        pool.shutdown(wait=False, cancel_futures=True)


def _submitted(engine: Answering, item: AnItem, params: SamplingParams) -> list[tuple[AnItem, Request]]:
    """The item with its request, if it waits for an answer."""
    if item.inputs is not None:
        try:
            return [(item, engine.submit(item.inputs, params))]
        except Error as error:
            item.fail(error)
    return []


def _after_step(
    engine: Answering, item: AnItem, request: Request, params: SamplingParams
) -> list[tuple[AnItem, Request]]:
    """The item with the request that it waits for now. Raises what is no fault of the item's."""
    if not request.done:
        return [(item, request)]
    if isinstance(request.error, Error):
        item.fail(request.error)
    else:
        item.succeed(request.result())
    return _submitted(engine, item, params)


class _Ahead(Generic[Source, AnItem]):
    """`prepare` of sources by threads, some two windows ahead of what was taken; false when all were taken.

    Attributes:
        line: all items, in order, of which the first has no result yet.
    """

    def __init__(
        self, pool: ThreadPoolExecutor, prepare: Callable[[Source], AnItem], sources: Iterator[Source], window: int
    ) -> None:
        self._pool, self._prepare, self._sources, self._size = pool, prepare, sources, window
        self._window: list[Future[AnItem]] = []  # from which is taken, until none is left
        self._next: list[Future[AnItem]] = []
        self.line: deque[Future[AnItem]] = deque()

    def __bool__(self) -> bool:
        return bool(self._window or self._next)

    def take(self, *, wait: bool) -> AnItem | None:
        """The longest of the window's items that are ready, else of the next one's; None if none is.

        Args:
            wait: until one is ready, if there is any at all.
        """
        if not self._window:
            self._window, self._next = self._next[: self._size], self._next[self._size :]
        ready = self._ready()
        if not ready and wait and self:
            futures.wait([*self._window, *self._next], return_when=futures.FIRST_COMPLETED)
            ready = self._ready()
        if not ready:
            return None
        longest = max(ready, key=lambda future: _length(future.result()))
        (self._window if longest in self._window else self._next).remove(longest)
        self.fill()
        return longest.result()

    def finished(self) -> Iterator[AnItem]:
        """The items of the line up to the first without a result, which leave it."""
        while self.line and self.line[0].done() and (item := self.line[0].result()).done:
            self.line.popleft()
            yield item

    def fill(self) -> None:
        """Have more prepared, where there is room."""
        room = 2 * self._size - len(self._window) - len(self._next)
        for source in islice(self._sources, room):
            self._next.append(self._pool.submit(self._prepare, source))
            self.line.append(self._next[-1])

    def _ready(self) -> list[Future[AnItem]]:
        return next((found for window in (self._window, self._next) if (found := [f for f in window if f.done()])), [])


def _length(item: Item) -> int:
    """Of its prompt."""
    return 0 if item.inputs is None else len(item.inputs)
