"""`vl bench quality`: what each quantization costs in distributions and scores."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from vl.cli.console import DeviceOption, FiguresOption, ModelOption, printable, stderr_console, stdout_console

if TYPE_CHECKING:
    from vl.bench.quality import Quality


def quality(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TASK...", help="Built-in tasks of vl eval; by default scenes, words, emoji.", show_default=False
        ),
    ] = None,
    model: ModelOption = "nano",
    only: Annotated[
        list[str] | None,
        typer.Option(help="Of bfloat16, int8, fp8 and nf4, these; may be repeated.", show_default="all"),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Examples of each task.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples answered at once.")] = 32,
    json: FiguresOption = None,
    device: DeviceOption = None,
) -> None:
    """Every format beside the model in float32: divergence of the next token, agreement, and scores."""
    from vl.bench.quality import CONTENDERS, Quality, bench_quality
    from vl.files import write_file

    names, rows = tuple(dict.fromkeys(only or CONTENDERS)), list[Quality]()
    if unknown := [name for name in names if name not in CONTENDERS]:
        raise typer.BadParameter(f"{printable(unknown[0])}: choose from {', '.join(CONTENDERS)}", param_hint="--only")
    console = stderr_console()
    chosen = tuple(dict.fromkeys(tasks or ("scenes", "words", "emoji")))
    for row in bench_quality(
        model,
        chosen,
        names,
        count=count,
        batch_size=batch_size,
        device=device,
        say=lambda what: console.print(Text(f"measuring {printable(what)}")),
    ):
        rows.append(row)
        if json is not None:
            write_file(json, jsonlib.dumps([asdict(row) for row in rows], indent=2) + "\n")
    for task in chosen:
        stdout_console().print(quality_table(task, [row for row in rows if row.task == task]))


def quality_table(task: str, rows: list[Quality]) -> Table:
    """The models on one task; scores are percentages, and with what differs from the first is its standard error."""
    from vl.evaluation import METRICS, find_task, label

    metric = METRICS[find_task(task).metric]
    scores = list(rows[0].scores)
    title = Text(f"{task}: {rows[0].examples:,} examples, {rows[0].tokens:,} tokens of answers")
    main = scores[0]
    beside = f"{label(main)} beside {rows[0].name}"
    table = Table("weights", "KL, nats", "same top-1", *map(label, scores), beside, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        shown = (metric.show(name, row.scores[name]) for name in scores)
        change = row.scores[main] - rows[0].scores[main]
        points = f"{100 * change:+.2f} \u00b1 {100 * row.spread[main]:.2f} points"
        figures = f"{row.divergence:.6f}", f"{row.agreement:.2%}"
        table.add_row(row.name, *figures, *shown, "" if row is rows[0] else points)
    return table
