"""From examples to scored rows: questions are prepared by threads while the model answers the batch before."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from preprocessing import Inputs
from vl.engine import Generation
from vl.errors import Error
from vl.evaluation.examples import Example, Row
from vl.evaluation.metrics import METRICS

if TYPE_CHECKING:
    from vl.model import MiniMaxVL


def answer(
    model: MiniMaxVL, examples: Iterable[Example | Row], batch_size: int, max_new_tokens: int
) -> Iterator[list[Row]]:
    """Rows of `examples`, a list per batch, in order; the answers are greedy.

    Rows among the examples pass through. An image that cannot be read, a prompt that does not fit and a reference
    that the metric cannot use cost their own row, which then has an error.
    """
    pool = ThreadPoolExecutor(thread_name_prefix="vl-images")
    try:
        prepared = _ahead(pool, model, examples, 2 * batch_size)
        while batch := list(islice(prepared, batch_size)):
            _generate(model, [item for item in batch if item.inputs is not None], max_new_tokens)
            yield [item.row for item in batch]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass
class _Item:
    """An example on its way to a row; `inputs` until it is answered or failed."""

    row: Row
    inputs: Inputs | None = None

    def fail(self, error: BaseException | str) -> None:
        self._finish(error=str(error) or type(error).__name__)

    def succeed(self, generation: Generation) -> None:
        assert self.row.metric is not None
        text = generation.text.strip()
        try:
            scores = METRICS[self.row.metric].score(self.row.references, text)
            self._finish(answer=text, finish_reason=generation.finish_reason, scores=scores)
        except ValueError as error:
            self.fail(error)

    def _finish(self, **outcome: Any) -> None:
        self.inputs = None
        self.row = replace(self.row, **outcome)


def _prepare(model: MiniMaxVL, example: Example | Row) -> _Item:
    if isinstance(example, Row):
        return _Item(example)
    row = Row(
        example.id,
        example.task,
        example.metric,
        example.prompt,
        example.references,
        line=example.line,
        pictures=example.pictures,
    )
    item = _Item(row)
    try:
        inputs = model.processor(example.messages)
    except Error as error:
        item.fail(error)
    except Exception as error:
        item.fail(f"cannot prepare {row.place}: {type(error).__name__}: {error}")
    else:
        sizes = tuple((grid.width, grid.height) for grid in inputs.grids)
        item = _Item(replace(row, sizes=sizes), inputs)
    return item


def _generate(model: MiniMaxVL, items: list[_Item], max_new_tokens: int) -> None:
    """Answer what could be prepared; if the batch fails as a whole, one by one, to find whose fault it is."""
    if not items:
        return
    try:
        inputs = [item.inputs for item in items if item.inputs is not None]
        generations = model.generate(inputs, max_new_tokens=max_new_tokens)
    except (Error, MemoryError, torch.OutOfMemoryError) as error:
        if len(items) == 1:
            items[0].fail(error)
        else:
            for item in items:
                _generate(model, [item], max_new_tokens)
        return
    for item, generation in zip(items, generations, strict=True):
        item.succeed(generation)


def _ahead(
    pool: ThreadPoolExecutor, model: MiniMaxVL, examples: Iterable[Example | Row], ahead: int
) -> Iterator[_Item]:
    """Prepared examples in order, at most `ahead` of the reader. Drawing stays in the reader's thread."""
    running: deque[Future[_Item]] = deque()
    for example in examples:
        running.append(pool.submit(_prepare, model, example))
        if len(running) > ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
