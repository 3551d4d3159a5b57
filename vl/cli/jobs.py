"""`vl bench jobs`: how near a captioning job comes to the engine alone."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer
from rich.table import Table

from vl.cli.console import DeviceOption, DTypeOption, ModelOption, stdout_console


def jobs(
    model: ModelOption = "nano",
    images: Annotated[int, typer.Option(min=1, help="Made-up photographs of 336x336 to 1344x1008.")] = 400,
    batch_size: Annotated[int, typer.Option(min=1, help="Images captioned at once.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of a caption, at most.")] = 64,
    workers: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Processes that cut images, 0: none; repeat it to compare. By default a job's own."),
    ] = None,
    device: DeviceOption = None,
    dtype: DTypeOption = None,
) -> None:
    """Images a second of a job, from files to rows on disk, beside the engine on inputs that are there already."""
    import vl
    from vl.bench.jobs import bench_jobs

    load = partial(vl.load, model, device=device, dtype=dtype, max_batch_size=batch_size)
    found = bench_jobs(load, images, batch_size=batch_size, max_new_tokens=max_new_tokens, workers=workers or [])
    table = Table("what", "images/s", "of the engine", title=f"{found.images} images, {found.tokens:.0f} tokens each")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("engine alone", f"{found.alone:.2f}", "")
    for count, rate in found.jobs.items():
        table.add_row(f"job, {count} processes" if count else "job", f"{rate:.2f}", f"{rate / found.alone:.0%}")
    stdout_console().print(table)
