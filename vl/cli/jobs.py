"""`vl bench jobs`: how near a captioning job comes to the engine alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from vl.cli.console import DeviceOption, DTypeOption, ModelOption, stdout_console

if TYPE_CHECKING:
    from vl.bench.jobs import Run


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

    loaded = vl.load(model, device=device, dtype=dtype, max_batch_size=batch_size)
    found = bench_jobs(loaded, images, batch_size=batch_size, max_new_tokens=max_new_tokens, workers=workers or [])
    title = f"{found.images} images, {found.tokens:.0f} tokens each"
    table = Table("what", "images/s", "of the engine", "CPU ms/image", "GPU busy", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for when, run in zip(("before", "after"), found.alone, strict=True):
        table.add_row(f"engine alone, {when}", f"{run.rate:.2f}", "", _cpu(run), _percent(run.busy))
    for count, run in found.jobs.items():
        name = f"job, {count} processes" if count else "job"
        table.add_row(name, f"{run.rate:.2f}", _percent(run.rate / found.alone_rate), _cpu(run), _percent(run.busy))
    stdout_console().print(table)


def _cpu(run: Run) -> str:
    return f"{1000 * run.cpu:,.1f}"


def _percent(part: float | None) -> str:
    return "" if part is None else f"{part:.0%}"
