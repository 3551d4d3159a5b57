"""`vl bench soak`: a server under clients that leave and clients that send nonsense."""

from __future__ import annotations

import json as jsonlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vl.cli.console import (
    EXIT_SOME_FAILED,
    ModelOption,
    check_charts,
    check_folders,
    complain,
    printable,
    read_path,
    stderr_console,
    stdout_console,
)
from vl.cli.loading import Loading, loading_options

if TYPE_CHECKING:
    from vl.bench.serving.soak import Soak

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_SHOWN = 20  # faults


@loading_options(max_batch_size=8, cache_tokens=16384, prefix_memory=64, tile_memory=16, image_memory=16)
def soak(
    model: ModelOption = "nano",
    duration: Annotated[str, typer.Option(metavar="30s|30m|2h", help="For how long clients ask.")] = "30m",
    clients: Annotated[int, typer.Option(min=1, help="That ask at the same time.")] = 24,
    questions: Annotated[int, typer.Option(min=1, help="Different ones, each first asked alone.")] = 40,
    max_waiting: Annotated[int, typer.Option(min=0, help="Requests beyond --batch-size; more get status 429.")] = 14,
    seed: Annotated[int, typer.Option(help="Of what is asked, and when clients leave.")] = 0,
    json: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Also write what came of it to this file.",
            show_default=False,
            parser=read_path,
            metavar="PATH",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            help="Also draw memory and requests over time into this PNG.",
            show_default=False,
            parser=read_path,
            metavar="PATH",
        ),
    ] = None,
    *,
    loading: Loading,
) -> None:
    """Many clients of a server for a time: a third leave in the middle, some send nonsense; nothing may be lost."""
    import asyncio

    try:
        from vl.bench.serving.client import Client
        from vl.bench.serving.malformed import LIMITS
        from vl.bench.serving.process import started
        from vl.bench.serving.soak import draw_soak
        from vl.bench.serving.soak import soak as run
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"{error.name} is not installed: pip install 'minimax-vl[serve]'") from None
    from vl.files import write_file

    seconds = read_duration(duration)
    check_folders(json, plot)
    check_charts(plot)
    options = (*LIMITS, *as_options(server_settings(loading) | {"max-waiting": max_waiting}))

    async def ask(url: str) -> Soak:
        async with Client(url) as client:
            name = await client.find_model(None)
            with stderr_console().status("starting") as status:
                return await run(
                    client, name, seconds=seconds, clients=clients, questions=questions, seed=seed, tell=status.update
                )

    with started(model, options) as url:
        found = asyncio.run(ask(url))
    if json is not None:
        write_file(json, jsonlib.dumps(found.as_json(), indent=2) + "\n")
    stdout_console().print(soak_table(found))
    for fault in found.faults[:_SHOWN]:
        complain(fault, kind="fault")
    if plot is not None:
        draw_soak(found, plot)
    if found.faults:
        complain(f"{len(found.faults):,} faults", kind="failed")
        raise typer.Exit(EXIT_SOME_FAILED)


def read_duration(text: str) -> float:
    """`90s`, `30m`, `2h` as seconds. Raises BadParameter."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smh]?)", text.strip().lower())
    if not match or not float(match[1]):
        raise typer.BadParameter(f"{printable(text)!r} is no duration: write 90s, 30m or 2h", param_hint="--duration")
    return float(match[1]) * _UNITS[match[2]]


def server_settings(loading: Loading) -> dict[str, Any]:
    """What `vl serve` is told, by its options' names; those that are None are left out."""
    settings = {name.replace("_", "-"): value for name, value in loading.arguments().items() if value is not None}
    settings["batch-size"] = settings.pop("max-batch-size")
    return settings


def as_options(settings: Mapping[str, Any]) -> Sequence[str]:
    """The same as words of a command line."""
    return [word for name, value in settings.items() for word in (f"--{name}", _written(value))]


def _written(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def soak_table(found: Soak) -> Table:
    """Requests by how they ended, and what was left at the end."""
    title = f"{found.ended.total():,} requests in {found.seconds:,.0f} s, {len(found.faults):,} faults"
    table = Table("what", "", title=title)
    table.columns[1].justify = "right"
    for how, count in found.ended.most_common():
        table.add_row(how, f"{count:,}")
    if found.memory is not None:
        for when, size in zip(("second", "last"), found.memory, strict=True):
            table.add_row(f"resident memory in the {when} quarter, MiB", f"{size / 2**20:,.0f}")
    if found.last is not None:
        for what in ("running", "waiting", "slots", "pages", "snapshots", "files"):
            table.add_row(f"{what} at the end", str(getattr(found.last, what)))
    return table
