"""From sources to results: threads prepare what comes next while the engine writes what came before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from preprocessing import Inputs
from vl.engine import Generation, Request, SamplingParams
from vl.errors import Error, InputError

if TYPE_CHECKING:
    from vl.model import MiniMaxVL

_WAITING = 1000  # results that are kept at most because an earlier source is not ready


class Item(Protocol):
    """A source on its way to a result.

    `inputs` wait for an answer; they are None once the item has its result. An answer that leaves some is followed by
    theirs: what the engine read for the first is then still there.
    """

    inputs: Inputs | None

    def succeed(self, generation: Generation) -> None: ...
    def fail(self, error: Exception) -> None: ...


Source = TypeVar("Source")
AnItem = TypeVar("AnItem", bound=Item)


def answered(
    model: MiniMaxVL,
    sources: Iterable[Source],
    prepare: Callable[[Source], AnItem],
    params: SamplingParams,
    *,
    batch_size: int,
    workers: int | None = None,
) -> Generator[AnItem, None, None]:
    """The items of `sources` with their results, in order.

    The engine writes up to `batch_size` answers at once, and takes the next item as soon as one is done. As many again
    are prepared ahead of it, so memory is bounded whatever the number of sources.

    Args:
        model: what answers.
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
    return _answered(model, sources, prepare, params, batch_size, workers)


def _answered(
    model: MiniMaxVL,
    sources: Iterable[Source],
    prepare: Callable[[Source], AnItem],
    params: SamplingParams,
    batch_size: int,
    workers: int | None,
) -> Generator[AnItem, None, None]:
    engine = model.engine
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vl-images")
    writing: list[tuple[AnItem, Request]] = []
    line: deque[AnItem] = deque()  # of which the first has no result yet
    try:
        ahead = _Ahead(pool, prepare, iter(sources), batch_size)
        while ahead or line:
            # Only an idle engine waits for an image.
            while len(writing) < batch_size and len(line) < _WAITING and ahead and (ahead.ready or not writing):
                item = ahead.take()
                line.append(item)
                writing += _submitted(model, item, params)
            if writing:
                engine.step()
                writing = [pair for item, request in writing for pair in _after_step(model, item, request, params)]
            while line and line[0].inputs is None:
                yield line.popleft()
    finally:
        for _, request in writing:
            engine.cancel(request)
        pool.shutdown(wait=False, cancel_futures=True)


def _submitted(model: MiniMaxVL, item: AnItem, params: SamplingParams) -> list[tuple[AnItem, Request]]:
    """The item with its request, if it waits for an answer."""
    if item.inputs is not None:
        try:
            return [(item, model.engine.submit(item.inputs, params))]
        except Error as error:
            item.fail(error)
    return []


def _after_step(
    model: MiniMaxVL, item: AnItem, request: Request, params: SamplingParams
) -> list[tuple[AnItem, Request]]:
    """The item with the request that it waits for now. Raises what is no fault of the item's."""
    if not request.done:
        return [(item, request)]
    if isinstance(request.error, Error):
        item.fail(request.error)
    else:
        item.succeed(request.result())
    return _submitted(model, item, params)


class _Ahead(Generic[Source, AnItem]):
    """`map(prepare, sources)` by threads, `most` sources ahead of what was taken; false when all were taken."""

    def __init__(
        self, pool: ThreadPoolExecutor, prepare: Callable[[Source], AnItem], sources: Iterator[Source], most: int
    ) -> None:
        self._pool, self._prepare, self._sources = pool, prepare, sources
        self._running: deque[Future[AnItem]] = deque()
        self._fill(most)

    def __bool__(self) -> bool:
        return bool(self._running)

    @property
    def ready(self) -> bool:
        """Whether `take` would not wait."""
        return bool(self._running) and self._running[0].done()

    def take(self) -> AnItem:
        item = self._running.popleft().result()
        self._fill(1)
        return item

    def _fill(self, count: int) -> None:
        for _ in range(count):
            try:
                source = next(self._sources)
            except StopIteration:
                return
            self._running.append(self._pool.submit(self._prepare, source))
