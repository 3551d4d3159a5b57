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
    device: DeviceOption = None,
    dtype: DTypeOption = None,
) -> None:
    """Images a second of a job, from files to rows on disk, beside the engine on inputs that are there already."""
    import vl
    from vl.bench.jobs import bench_jobs

    load = partial(vl.load, model, device=device, dtype=dtype, max_batch_size=batch_size)
    found = bench_jobs(load, images, batch_size=batch_size, max_new_tokens=max_new_tokens)
    table = Table("what", "images/s", title=f"{found.images} images, {found.tokens:.0f} tokens written for each")
    table.columns[1].justify = "right"
    for what, rate in (("engine alone", found.alone), ("job", found.job)):
        table.add_row(what, f"{rate:.2f}")
    stdout_console().print(table)
    stdout_console().print(f"the job reaches {found.share:.0%} of the engine")
