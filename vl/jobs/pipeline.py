"""From sources to results: threads prepare what comes next while the engine writes what came before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from heapq import heappop, heappush
from itertools import islice
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from vl.engine import Generation, SamplingParams
from vl.engine.config import whole
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
    if (size := whole(batch_size)) is None or size < 1:
        raise InputError(f"batch_size must be a whole number, at least 1, not {batch_size!r:.80}")
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
            # Only an idle engine waits for an image; if nothing else may wait for it, for the first in line.
            while len(writing) < batch_size and (len(ahead.line) < _WAITING or not (writing or ahead.moves)):
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
    """`prepare` of sources by threads, two windows of them ahead of what was taken; false when all were taken.

    Attributes:
        line: all items, in order, of which the first has no result yet.
    """

    def __init__(
        self, pool: ThreadPoolExecutor, prepare: Callable[[Source], AnItem], sources: Iterator[Source], window: int
    ) -> None:
        self._pool, self._prepare, self._sources, self._size = pool, prepare, sources, window
        self._begun = self._taken = 0
        self._came: SimpleQueue[tuple[int, Future[AnItem]]] = SimpleQueue()  # from the threads
        self._ready: list[tuple[int, int, int, AnItem]] = []  # a heap: window, longest first, number
        self._out: set[int] = set()  # numbers of those in line that were taken
        self.line: deque[Future[AnItem]] = deque()

    def __bool__(self) -> bool:
        return self._taken < self._begun

    def take(self, *, wait: bool) -> AnItem | None:
        """The longest that is ready of the first window that has any; None if none is.

        Args:
            wait: until one is ready, if there is any at all; where as many as may be kept wait for the first of the
                line, until one of its window is.
        """
        while not self._came.empty() or (wait and self and not self._helps()):
            number, future = self._came.get()
            item = future.result()
            heappush(self._ready, (number // self._size, -_length(item), number, item))
        if not self._ready:
            return None
        *_, number, item = heappop(self._ready)
        self._out.add(number)
        self._taken += 1
        self.fill()
        return item

    def _helps(self) -> bool:
        """Whether one is ready that may be taken: any, or while a full line waits for its first, one of its window.

        A first that was taken may wait for the answer of another: of an image that is the same.
        """
        first = self._begun - len(self.line)
        if len(self.line) < _WAITING or first in self._out:
            return bool(self._ready)
        return bool(self._ready) and self._ready[0][0] <= first // self._size

    @property
    def moves(self) -> bool:
        """Whether the first of the line has its result."""
        return bool(self.line) and self.line[0].done() and self.line[0].result().done

    def finished(self) -> Iterator[AnItem]:
        """The items of the line up to the first without a result, which leave it."""
        while self.moves:
            self._out.discard(self._begun - len(self.line))
            yield self.line.popleft().result()

    def fill(self) -> None:
        """Have more prepared, where there is room."""
        for source in islice(self._sources, 2 * self._size - (self._begun - self._taken)):
            future = self._pool.submit(self._prepare, source)
            future.add_done_callback(partial(self._comes, self._begun))
            self._begun += 1
            self.line.append(future)

    def _comes(self, number: int, future: Future[AnItem]) -> None:
        self._came.put((number, future))


def _length(item: Item) -> int:
    """Of its prompt."""
    return 0 if item.inputs is None else len(item.inputs)
