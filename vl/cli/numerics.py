"""`vl bench numerics`: what each quantization costs in numerics alone, on layers with random weights."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from vl.cli.console import DeviceOption, FiguresOption, printable, stderr_console, stdout_console

if TYPE_CHECKING:
    from vl.bench.numerics import Numerics


def numerics(
    only: Annotated[
        list[str] | None, typer.Option(help="Of int8, fp8 and nf4, these; may be repeated.", show_default="all")
    ] = None,
    scale: Annotated[
        Literal["full", "small"] | None,
        typer.Option(help="Released sizes or scaled ones.", show_default="full on a GPU"),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt that is read.")] = 4096,
    json: FiguresOption = None,
    device: DeviceOption = None,
) -> None:
    """Eight layers with random weights in every format beside 16 bits: divergence, agreement and relative errors."""
    from vl.bench.numerics import Numerics, bench_numerics
    from vl.files import write_file
    from vl.quantization import FORMATS

    names, rows = tuple(dict.fromkeys(only or FORMATS)), list[Numerics]()
    if unknown := [name for name in names if name not in FORMATS]:
        raise typer.BadParameter(f"{printable(unknown[0])}: choose from {', '.join(FORMATS)}", param_hint="--only")
    console = stderr_console()
    for row in bench_numerics(
        names,
        full=None if scale is None else scale == "full",
        tokens=tokens,
        device=device,
        say=lambda what: console.print(Text(f"measuring {what}")),
    ):
        rows.append(row)
        if json is not None:
            write_file(json, jsonlib.dumps([asdict(each) for each in rows], indent=2) + "\n")
    stdout_console().print(numerics_table(rows))


def numerics_table(rows: list[Numerics]) -> Table:
    """The formats beside the same weights unquantised."""
    title = Text(f"{rows[0].layers} layers with random weights, {rows[0].tokens:,} tokens, beside {rows[0].dtype}")
    table = Table("weights", "KL, nats", "same top-1", "error of logits", "of last states", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        errors = f"{row.error:.2%}", f"{row.hidden_error:.2%}"
        table.add_row(row.name, f"{row.divergence:.5f}", f"{row.agreement:.2%}", *errors)
    return table
