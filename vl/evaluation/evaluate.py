"""Scoring a model: on a built-in task, or on a file of the user's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vl.errors import InputError
from vl.evaluation.answers import answer
from vl.evaluation.confidence import Confidence, confidence
from vl.evaluation.datafile import read_records
from vl.evaluation.examples import Example, Row
from vl.evaluation.metrics import METRICS
from vl.evaluation.tasks import Target, Task, find_task

if TYPE_CHECKING:
    from vl.model import MiniMaxVL

OnRows = Callable[[list[Row]], None]

DEFAULT_COUNT = 500
DEFAULT_BATCH = 32
DEFAULT_NEW_TOKENS = 256


@dataclass(frozen=True)
class Result:
    """The rows of one task and what they come to.

    `metric` is None for records that could not be read far enough to know; they have no scores.
    """

    task: str
    metric: str | None
    rows: tuple[Row, ...]
    targets: tuple[Target, ...] = ()

    @property
    def scored(self) -> list[Row]:
        return [row for row in self.rows if row.error is None]

    @property
    def errors(self) -> list[Row]:
        return [row for row in self.rows if row.error is not None]

    @property
    def failures(self) -> list[Row]:
        """The answers that are not right, the worst first; equally bad ones in their order."""
        return sorted((row for row in self.scored if not row.right), key=lambda row: row.badness, reverse=True)

    @property
    def count(self) -> int:
        """How many examples were scored."""
        return len(self.scored)

    @cached_property
    def scores(self) -> dict[str, float]:
        """By name, that which decides first; see `METRICS` for what they are."""
        return METRICS[self.metric].total(row.scores for row in self.scored) if self.metric else {}

    def target(self, score: str) -> Target | None:
        return next((target for target in self.targets if target.score == score), None)

    @cached_property
    def confidence(self) -> Confidence | None:
        """What the confidence of its answers says about them; None if that is not known."""
        return confidence(self.rows)

    def summary(self) -> dict[str, Any]:
        """Everything but the rows."""
        targets = {
            target.score: {"at_most" if target.most else "at_least": target.bound, "met": target.met(value)}
            for target in self.targets
            if (value := self.scores.get(target.score)) is not None
        }
        errors = [{"id": row.id, "line": row.line, "error": row.error} for row in self.errors]
        head = {"task": self.task, "metric": self.metric, "count": self.count}
        known = None if self.confidence is None else self.confidence.to_json()
        return head | {"scores": self.scores, "targets": targets, "confidence": known, "errors": errors}

    def to_json(self) -> dict[str, Any]:
        return self.summary() | {"rows": [row.to_json() for row in self.rows]}


def evaluate(
    model: MiniMaxVL,
    task: str | Task,
    count: int = DEFAULT_COUNT,
    batch_size: int = DEFAULT_BATCH,
    *,
    mix: Any = None,
    max_new_tokens: int | None = None,
    on_rows: OnRows | None = None,
) -> Result:
    """Scores a model, answering greedily, on the first `count` pictures of a built-in task.

    Args:
        task: a name of `find_tasks()`, or a task.
        count: pictures.
        batch_size: answers written at once; the engine's own `max_batch_size` bounds it too.
        mix: what the task draws from, such as a `vl.nano.mix.Mix`; its own by default.
        max_new_tokens: tokens written at most; the task's own number by default.
        on_rows: called with the rows of each batch.

    Raises:
        ConfigError: for an unknown task.
    """
    task = find_task(task) if isinstance(task, str) else task
    examples = islice(task.examples(mix), count)
    rows = _collect(model, examples, batch_size, max_new_tokens or task.max_new_tokens, on_rows)
    return Result(task.name, task.metric, tuple(rows), task.targets)


def evaluate_file(
    model: MiniMaxVL,
    path: str | os.PathLike[str],
    count: int | None = None,
    batch_size: int = DEFAULT_BATCH,
    *,
    metric: str | None = None,
    max_new_tokens: int | None = None,
    on_rows: OnRows | None = None,
) -> list[Result]:
    """Scores a model, answering greedily, on a JSON Lines file; see `read_records` for its format.

    Args:
        path: the file.
        count: how many records, from the first; all by default.
        metric: a name of `METRICS` that judges all records, whatever their task.
        max_new_tokens: tokens written at most (256).
        batch_size, on_rows: as for `evaluate`.

    Returns:
        a result per task in the order of the file, named `FILE: TASK`. A bad record is a row with an error.

    Raises:
        InputError: if the file cannot be read or is empty, or there is no such metric.
    """
    examples = islice(read_records(path, metric), count)
    rows = _collect(model, examples, batch_size, max_new_tokens or DEFAULT_NEW_TOKENS, on_rows)
    if not rows:
        raise InputError(f"{os.fspath(path)} holds no records: it should have a line of JSON for each")
    groups: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.metric), []).append(row)
    name = Path(path).name
    return [Result(f"{name}: {task}" if task else name, judge, tuple(g)) for (task, judge), g in groups.items()]


def _collect(
    model: MiniMaxVL,
    examples: Iterable[Example | Row],
    batch_size: int,
    max_new_tokens: int,
    on_rows: OnRows | None,
) -> list[Row]:
    rows: list[Row] = []
    with contextlib.closing(answer(model, examples, batch_size, max_new_tokens)) as batches:
        for batch in batches:
            rows += batch
            if on_rows:
                on_rows(batch)
    return rows
