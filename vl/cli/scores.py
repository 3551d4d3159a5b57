"""Tables of `vl eval`: scores, mistakes, examples that could not be used, tasks and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from vl.cli.console import plural, printable

if TYPE_CHECKING:
    from vl.evaluation import Result, Row, Target

_EXAMPLES, _ERRORS = 5, 20


def score_table(results: list[Result], model: str) -> Table:
    """The scores of every task; columns for errors and targets where there are any."""
    from vl.evaluation import METRICS, label

    with_errors, with_targets = any(r.errors for r in results), any(r.targets for r in results)
    columns = ("task", "examples", *(("errors",) if with_errors else ()), "score", "value")
    table = Table(*columns, *(("target",) if with_targets else ()), title=Text(f"scores of {printable(model)}"))
    for column in table.columns:
        column.justify = "right" if column.header in ("examples", "errors", "value") else "left"
    for result in results:
        head: list[str | Text] = [Text(printable(result.task)), f"{result.count:,}"]
        if with_errors:
            head.append(Text(f"{len(result.errors):,}", style="red") if result.errors else "")
        if not result.scores:
            table.add_row(*head)
        for name, value in result.scores.items():
            assert result.metric is not None
            target = result.target(name)
            value_cell = METRICS[result.metric].show(name, value)
            table.add_row(*head, label(name), value_cell, *((_verdict(target, value),) if target else ()))
            head = [""] * len(head)
        table.add_section()
    return table


def _verdict(target: Target, value: float) -> Text:
    met = target.met(value)
    return Text(f"{target.show()} {'met' if met else 'missed'}", style="green" if met else "red")


def confidence_table(results: list[Result]) -> Table | None:
    """How often answers are right that the model held likely; None where that is not known."""
    from vl.evaluation import confidence

    found = confidence(row for result in results for row in result.rows)
    if found is None:
        return None
    told = f"right where it is sure: AUROC {_decimals(found.auroc)}, calibration error {found.ece:.2f}"
    table = Table("mean token probability of at least", "answers", "of them right", title=told)
    for column in table.columns:
        column.justify = "right"
    for point in found.points:
        right = "" if point.accuracy is None else f"{point.accuracy:.1%}"
        table.add_row(f"{point.at_least:.0%}", f"{point.coverage:.1%}", right)
    return table


def _decimals(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def mistake_table(result: Result) -> Table | None:
    """The worst answers beside what was expected; None if all are right."""
    wrong = result.failures[:_EXAMPLES]
    if not wrong:
        return None
    table = Table("example", "size", "asked", "expected", "answer", title="worst mistakes", show_lines=True)
    for row in wrong:
        texts = (row.place, _sizes(row), row.prompt, "\n".join(row.references), row.answer or "")
        table.add_row(*(Text(printable(text)) for text in texts))
    return table


def error_table(results: list[Result]) -> Table | None:
    """The examples that could not be used, with line and cause; None if all could."""
    errors = [(result, row) for result in results for row in result.errors]
    if not errors:
        return None
    total = sum(len(result.rows) for result in results)
    title = f"{len(errors):,} of {plural(total, 'example')} could not be used"
    table = Table("task", "example", "cause", title=Text(title, style="red"))
    for result, row in errors[:_ERRORS]:
        table.add_row(*(Text(printable(text)) for text in (result.task, row.place, row.error or "")))
    if len(errors) > _ERRORS:
        table.add_row("", "", f"and {len(errors) - _ERRORS:,} more: --out DIR writes them all")
    return table


def task_table() -> Table:
    """The built-in tasks."""
    from vl.evaluation import find_tasks, label

    table = Table("task", "what it asks", "metric", "target", title="built-in tasks")
    for task in find_tasks().values():
        targets = ", ".join(f"{label(target.score)} {target.show()}" for target in task.targets)
        table.add_row(task.name, task.help, task.metric, targets)
    return table


def metric_table() -> Table:
    """The metrics, as records name them."""
    from vl.evaluation import METRICS

    table = Table("metric", "what it measures", title='metrics, for --metric and the "task" of a record')
    for name, metric in METRICS.items():
        table.add_row(name, metric.help)
    return table


def _sizes(row: Row) -> str:
    return ", ".join(f"{width} x {height}" for width, height in row.sizes)
