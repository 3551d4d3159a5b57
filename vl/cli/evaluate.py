"""`vl eval`: how often a model is right on pictures that training never saw."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vl.cli.console import (
    DeviceOption,
    DTypeOption,
    ModelOption,
    load_model,
    printable,
    stderr_console,
    stdout_console,
)

if TYPE_CHECKING:
    from vl.evaluation import Result

_EXAMPLES = 5


def evaluate(
    task: Annotated[
        Literal["scenes", "words"],
        typer.Argument(help="scenes: coloured shapes, named and placed; words: printed text, read."),
    ],
    model: ModelOption = "nano",
    count: Annotated[int, typer.Option(min=1, help="Held-out pictures.")] = 500,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures answered at once.")] = 32,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG.toml", help="Draw what this training recipe draws.", show_default="nano's"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object: scores and every row.")] = False,
    device: DeviceOption = None,
    dtype: DTypeOption = None,
) -> None:
    """Score a model on pictures from held-out seeds."""
    from vl.evaluation import evaluate
    from vl.training import TrainConfig

    mix = None if recipe is None else TrainConfig.read(recipe).data.mix
    loaded = load_model(model, device, dtype, max_batch_size=batch_size)
    console = stderr_console()
    columns = (TextColumn(task), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(task, total=count)
        result = evaluate(
            loaded,
            task,
            count,
            batch_size,
            mix=mix,
            on_progress=lambda answers: progress.update(bar, completed=answers),
        )
    if json:
        print(jsonlib.dumps({"model": model, **result.to_json()}, ensure_ascii=False))
    else:
        stdout_console().print(score_table(result, model))
        if mistakes := mistake_table(result):
            stdout_console().print(mistakes)


def score_table(result: Result, model: str) -> Table:
    """The scores in percent."""
    title = Text(f"{printable(model)}: {result.task}, {result.count:,} held-out pictures")
    table = Table("score", "value", title=title)
    table.columns[1].justify = "right"
    for name, value in result.scores.items():
        table.add_row(name.replace("_", " "), f"{value:.2%}")
    return table


def mistake_table(result: Result) -> Table | None:
    """The first wrong answers beside what was expected; None if there are none."""
    wrong = [row for row in result.rows if not row.right][:_EXAMPLES]
    if not wrong:
        return None
    table = Table("picture", "size", "expected", "answer", title="first mistakes", show_lines=True)
    for row in wrong:
        texts = (Text(printable(text)) for text in (row.expected, row.answer))
        table.add_row(str(row.index), f"{row.width} x {row.height}", *texts)
    return table
