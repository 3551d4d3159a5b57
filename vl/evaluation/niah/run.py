"""Having a model answer the prompts, many at a time."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from preprocessing import Inputs
from vl.engine import Generation, SamplingParams
from vl.errors import Error, InputError
from vl.evaluation.niah.cases import Case, Failed, Grid
from vl.evaluation.niah.pages import draw_page
from vl.evaluation.niah.results import Result, Row
from vl.jobs.pipeline import answered

if TYPE_CHECKING:
    from vl.model import MiniMaxVL

DEFAULT_BATCH = 8
DEFAULT_NEW_TOKENS = 256


def find_needles(
    model: MiniMaxVL,
    cases: Iterable[Case | Failed],
    depths: tuple[float, ...],
    *,
    batch_size: int = DEFAULT_BATCH,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    settings: Mapping[str, Any] | None = None,
    done: Mapping[str, Row] | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> Result:
    """Scores a model, answering greedily, on prompts with needles.

    What is wrong with one prompt costs its own row, which then has an error.

    Args:
        cases: `Grid.cases()` or `read_rounds(file, depths)`, of as many files as there are, each with its own name.
        depths: of the result's table, in percent.
        batch_size: prompts that are read at once; the engine's own `max_batch_size` bounds it too.
        settings: goes into the result as it is.
        done: rows of an earlier part, by their ids; their prompts are not answered again.
        on_row: called with each new row.

    Raises:
        InputError: if `batch_size` is below 1, two prompts have one id, or no prompt at all could be answered with so
            many new tokens.
    """
    cases, earlier = list(cases), done or {}
    if twice := [id for id, count in Counter(case.id for case in cases).items() if count > 1]:
        raise InputError(f"two prompts have the id {twice[0]}: give data files names of their own")
    params = SamplingParams(max_new_tokens=max_new_tokens)
    model.engine.check(params)
    rows = {case.id: _in_cell(earlier[case.id], case) for case in cases if case.id in earlier}
    items = answered(
        model.engine,
        [case for case in cases if case.id not in rows],
        partial(_prepare, model),
        params,
        batch_size=batch_size,
    )
    with contextlib.closing(items):
        for item in items:
            rows[item.row.id] = item.row
            if on_row:
                on_row(item.row)
    return Result(dict(settings or {}), tuple(rows[case.id] for case in cases), depths)


def _in_cell(row: Row, case: Case | Failed) -> Row:
    """An earlier row where the prompt counts now: other depths may be asked for."""
    return row if isinstance(case, Failed) else replace(row, length=case.length, depth=case.depth)


def check_grid(model: MiniMaxVL, grid: Grid, max_new_tokens: int) -> None:
    """Whether the prompts can be made and held, said before any is.

    Raises:
        ConfigError: if pages cannot be printed for want of a package.
        InputError: if the model sees no pages, or its memory could not hold the longest prompt and its answer.
    """
    if grid.pages and model.processor.patcher is None:
        raise InputError(f"{model.name} is a text-only checkpoint and sees no pages: leave out --pages")
    if grid.pages:
        draw_page(["A line"])
    longest = max(grid.lengths)
    try:
        model.engine.check(SamplingParams(max_new_tokens=max_new_tokens), longest)
    except InputError as error:
        raise InputError(f"prompts of {longest:,} tokens are too long: {error}") from error


@dataclass
class _Item:
    """A prompt on its way to a row; `inputs` until it is answered or failed."""

    row: Row
    score: Callable[[str, str], float]
    inputs: Inputs | None = None

    @property
    def done(self) -> bool:
        return self.inputs is None

    def fail(self, error: BaseException | str) -> None:
        self._finish(error=str(error) or type(error).__name__)

    def succeed(self, generation: Generation) -> None:
        text = generation.text.strip()
        score = self.score(self.row.reference, text)
        self._finish(
            reasoning=generation.reasoning or None, answer=text, finish_reason=generation.finish_reason, score=score
        )

    def _finish(self, **outcome: Any) -> None:
        self.inputs = None
        self.row = replace(self.row, **outcome)


def _prepare(model: MiniMaxVL, case: Case | Failed) -> _Item:
    if isinstance(case, Failed):
        return _Item(Row(case.id, error=case.error), lambda *_: 0.0)
    item = _Item(Row(case.id, case.length, case.depth, case.question, case.reference), case.score)
    try:
        inputs = case.prepare(model.processor)
    except Error as error:
        item.fail(error)
    except Exception as error:
        item.fail(f"cannot prepare {case.id}: {type(error).__name__}: {error}")
    else:
        item.row, item.inputs = replace(item.row, tokens=len(inputs)), inputs
    return item
