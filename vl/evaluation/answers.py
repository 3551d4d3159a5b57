"""From examples to scored rows, through the pipeline that captioning takes too."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from preprocessing import Inputs
from vl.engine import Generation, SamplingParams
from vl.errors import Error
from vl.evaluation.examples import Example, Row
from vl.evaluation.metrics import METRICS
from vl.evaluation.metrics.distance import check_installed
from vl.jobs.pipeline import answered

if TYPE_CHECKING:
    from vl.model import MiniMaxVL


def answer(
    model: MiniMaxVL, examples: Iterable[Example | Row], batch_size: int, max_new_tokens: int
) -> Generator[list[Row], None, None]:
    """Rows of `examples`, up to `batch_size` at a time, in order; the answers are greedy.

    Rows among the examples pass through. An image that cannot be read, a prompt that does not fit and a reference
    that the metric cannot use cost their own row, which then has an error.

    Raises:
        ConfigError: without the packages that metrics need.
        InputError: if `batch_size` is below 1, or no prompt at all could be answered with so many new tokens.
    """
    check_installed()
    params = SamplingParams(max_new_tokens=max_new_tokens, logprobs=True)
    model.engine.check(params)
    items = answered(model.engine, examples, partial(_prepare, model), params, batch_size=batch_size)
    with contextlib.closing(items):
        while batch := list(islice(items, batch_size)):
            yield [item.row for item in batch]


@dataclass
class _Item:
    """An example on its way to a row; `inputs` until it is answered or failed."""

    row: Row
    inputs: Inputs | None = None

    @property
    def done(self) -> bool:
        return self.inputs is None

    def fail(self, error: BaseException | str) -> None:
        self._finish(error=str(error) or type(error).__name__)

    def succeed(self, generation: Generation) -> None:
        assert self.row.metric is not None
        text = generation.text.strip()
        try:
            scores = METRICS[self.row.metric].score(self.row.references, text)
            self._finish(
                answer=text,
                finish_reason=generation.finish_reason,
                scores=scores,
                reasoning=generation.reasoning,
                confidence=_confidence(generation),
            )
        except ValueError as error:
            self.fail(error)

    def _finish(self, **outcome: Any) -> None:
        self.inputs = None
        self.row = replace(self.row, **outcome)


def _confidence(generation: Generation) -> float | None:
    """The mean probability of the tokens that were written."""
    told = generation.logprobs
    return sum(math.exp(token.logprob) for token in told) / len(told) if told else None


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
