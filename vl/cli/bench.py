"""`vl bench`: the project's measurements, on this machine."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from vl.cli.console import stdout_console

if TYPE_CHECKING:
    from vl.bench.patcher import PatcherRow

app = typer.Typer(help="Measure on this machine.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Measure on this machine."""


@app.command("patcher")
def patcher(
    repeats: Annotated[int, typer.Option(min=1, help="Times each contender runs; the median counts.")] = 15,
    json: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures to this file.", show_default=False)
    ] = None,
) -> None:
    """Time from an image to its tiles: ours, the recipe done with Pillow, and transformers' processors."""
    from vl.bench.patcher import bench_patcher

    rows = bench_patcher(repeats=repeats)
    stdout_console().print(patcher_table(rows))
    if json is not None:
        figures = [asdict(row) | {"ratio": row.ratio, "pillow_ratio": row.pillow_ratio} for row in rows]
        try:
            json.write_text(jsonlib.dumps(figures, indent=2) + "\n", "utf-8")
        except OSError as error:
            raise typer.BadParameter(f"cannot write {json}: {error.strerror}", param_hint="--json") from error


def patcher_table(rows: Sequence[PatcherRow]) -> Table:
    """Milliseconds, our share of transformers' time, and whether the pixels are the recipe's."""
    table = Table(
        "image",
        "tiles",
        "ours ms",
        "recipe ms",
        "transformers ms",
        "its Pillow ms",
        "ratio",
        "Pillow ratio",
        "identical",
    )
    for column in table.columns:
        column.justify = "right"
    for row in rows:
        table.add_row(
            f"{row.width} x {row.height}",
            str(row.tiles),
            f"{row.ours_ms:.1f}",
            f"{row.recipe_ms:.1f}",
            *(_number(value, ".1f") for value in (row.transformers_ms, row.transformers_pillow_ms)),
            *(_number(value, ".2f") for value in (row.ratio, row.pillow_ratio)),
            "yes" if row.identical else "NO",
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
