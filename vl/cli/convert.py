"""`vl convert`: a quantised copy of a checkpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text

from vl.cli.console import (
    EXIT_INTERRUPTED,
    Quantization,
    complain,
    plural,
    printable,
    read_path,
    stderr_console,
    stdout_console,
)

_LOG_SECONDS = 30.0


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="nano, a folder in the released layout, or a hub id.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="A new folder, or one to go on in.", parser=read_path)],
    quantization: Annotated[Quantization, typer.Option(help="The format of the layers' matrices.")],
    device: Annotated[
        str | None, typer.Option(help="Where to quantise; by default the first GPU, else the CPU.", show_default=False)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Files worked on at once.", show_default="the CPUs, at most 8")
    ] = None,
) -> None:
    """Write a quantised copy of a checkpoint, which loads without being quantised again.

    Killed at any moment, the same command does the rest: finished files are kept.
    """
    from vl.convert import convert, plan_conversion
    from vl.loading import pick_device

    place = pick_device(device)
    conversion = plan_conversion(source, target, quantization)
    files = len(conversion.manifest.files)
    if conversion.finished:
        complain(f"{len(conversion.finished)} of {plural(files, 'file')} were finished before", kind="note")
    start = time.monotonic()
    try:
        with _Progress(stderr_console()) as progress:
            convert(conversion, device=place, threads=threads, progress=progress.update)
    except KeyboardInterrupt:
        complain(f"finished files are in {target}; run the same command again for the rest", kind="interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    size = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    line = f"{plural(files, 'file')}, {decimal(size)}, in {time.monotonic() - start:.1f} s: {printable(str(target))}"
    stdout_console().print(Text(line), soft_wrap=True)


class _Progress:
    """A bar with bytes, speed and the time left on a terminal, a line now and then in a log; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (
            TextColumn("converting"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("converting", total=None)
        self._start = self._logged = time.monotonic()

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._logged > _LOG_SECONDS:
            self._logged = now
            rate = done / (now - self._start)
            line = f"{decimal(done)} of {decimal(total)} · {decimal(int(rate))}/s · {(total - done) / rate:,.0f} s left"
            self._console.print(Text(line), soft_wrap=True)
