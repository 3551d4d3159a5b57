"""`vl bench long`: long prompts through the engine."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from vl.cli.console import (
    DeviceOption,
    FiguresOption,
    Quantization,
    ScaleOption,
    printable,
    read_path,
    stderr_console,
    stdout_console,
)
from vl.cli.progress import ReadingProgress

if TYPE_CHECKING:
    from vl.bench.long import LongRow


def long(
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Tokens of the prompts; K and M are 1024 and 1024 x 1024.",
            show_default="8K,32K,128K,512K,1M",
        ),
    ] = None,
    attention: Annotated[
        Literal["hybrid", "softmax"], typer.Option(help="Of the layers: as released, or softmax in all eight.")
    ] = "hybrid",
    prefill_tokens: Annotated[int | None, typer.Option(min=2, help="Read in a pass.", show_default="8192")] = None,
    quantization: Annotated[
        Quantization | None, typer.Option(help="Format of the layers' matrices.", show_default="16 bits")
    ] = None,
    scale: ScaleOption = None,
    json: FiguresOption = None,
    beside: Annotated[
        Path | None,
        typer.Option(
            "--beside",
            help="Figures that --json wrote before, to show with these.",
            show_default=False,
            parser=read_path,
            metavar="PATH",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            help="Also draw time and cache against length into this PNG.",
            show_default=False,
            parser=read_path,
            metavar="PATH",
        ),
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Eight layers, random weights: long prompts read through the engine, memory, and a token written after each."""
    from vl.bench.long import LENGTHS, SMALL, bench_long, draw_long
    from vl.bench.model import CHUNK
    from vl.bench.runner import Options, setting_for, start
    from vl.files import write_file

    sizes = None if lengths is None else read_lengths(lengths)
    earlier = [] if beside is None else read_rows(beside)
    for path in (json, plot):
        if path is not None and not path.parent.is_dir():
            raise typer.BadParameter(f"there is no folder {printable(str(path.parent))} to write {path.name} into")
    options = Options(device, scale, quantization=quantization)
    report = start(options)
    setting = setting_for(report, options)
    rows: list[LongRow] = []
    with ReadingProgress(stderr_console()) as progress:
        for row in bench_long(
            setting,
            report.ceilings,
            sizes or (SMALL if setting.small else LENGTHS),
            attention=attention,
            prefill_tokens=prefill_tokens or (64 if setting.small else CHUNK),
            progress=progress,
        ):
            rows.append(row)
            stderr_console().print(f"{row.tokens:,} tokens: {row.seconds:.2f} s, {row.rate:,.0f} tokens/s")
            if json is not None:
                write_file(json, jsonlib.dumps([each.as_json() for each in rows], indent=2) + "\n")
    stdout_console().print(long_table([*earlier, *rows]))
    if plot is not None:
        try:
            draw_long([*earlier, *rows], plot)
        except ImportError as error:
            raise typer.BadParameter("charts need matplotlib: pip install matplotlib", param_hint="--plot") from error


def read_lengths(text: str) -> tuple[int, ...]:
    """`8K,1M` as numbers of tokens. Raises BadParameter."""
    units = {"K": 2**10, "M": 2**20}
    found = []
    for word in (part.strip().upper() for part in text.split(",")):
        digits, unit = (word[:-1], units[word[-1]]) if word[-1:] in units else (word, 1)
        if not digits.isdecimal() or int(digits) < 1:
            raise typer.BadParameter(
                f"{printable(word) or 'nothing'} is no length: give numbers such as 8192 or 128K",
                param_hint="--lengths",
            )
        found.append(int(digits) * unit)
    return tuple(found)


def read_rows(path: Path) -> list[LongRow]:
    """Figures that `--json` wrote. Raises BadParameter."""
    from vl.bench.long import LongRow

    try:
        return [LongRow.of_json(figures) for figures in jsonlib.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise typer.BadParameter(
            f"{printable(str(path))} holds no figures of `vl bench long --json` ({printable(str(error))})",
            param_hint="--beside",
        ) from None


def long_table(rows: list[LongRow]) -> Table:
    """Speed, the floor's part, where the time went, memory, and writing."""
    columns = ("attention", "tokens", "s", "tokens/s", "of floor", "lightning s", "softmax s", "experts s")
    table = Table(*columns, "peak GiB", "cache GiB", "ms/token after")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row.attention,
            f"{row.tokens:,}",
            f"{row.seconds:.3f}",
            f"{row.rate:,.0f}",
            f"{row.of_floor:.0%}",
            *(f"{row.kinds[kind]:.3f}" if kind in row.kinds else "-" for kind in ("lightning", "softmax", "experts")),
            f"{row.peak / 2**30:.2f}",
            f"{row.cache / 2**30:.3f}",
            f"{row.decode * 1e3:.2f}",
        )
    return table
