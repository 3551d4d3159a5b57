"""`vl bench load`: how near loading a checkpoint comes to reading its files."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from vl.cli.console import DeviceOption, DTypeOption, stdout_console


def load(
    model: Annotated[str, typer.Argument(help="A folder in the released layout, or a hub id.")],
    device: DeviceOption = None,
    dtype: DTypeOption = None,
    repeats: Annotated[int, typer.Option(min=1, help="Turns; medians count.")] = 5,
    cold: Annotated[bool, typer.Option("--cold", help="Have Linux forget the files before each turn.")] = False,
) -> None:
    """Seconds to read the files of a checkpoint, and to read them into a model."""
    from vl.bench.load import bench_load

    found = bench_load(model, device=device, dtype=dtype, repeats=repeats, cold=cold)
    table = Table("what", "seconds", "GB/s", title=f"{found.size / 1e9:.2f} GB, {'cold' if cold else 'warm'}")
    for column in table.columns[1:]:
        column.justify = "right"
    for what, seconds in (("read", found.read), ("loaded", found.load)):
        table.add_row(what, f"{seconds:.3f}", f"{found.size / seconds / 1e9:.2f}")
    stdout_console().print(table)
    stdout_console().print(f"loaded at {found.share:.0%} of the speed of reading")
