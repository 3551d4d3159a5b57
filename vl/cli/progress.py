"""Progress on stderr: of a captioning run, and of reading a long prompt."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from vl.cli.console import plural

if TYPE_CHECKING:
    from vl.engine import Reading
    from vl.jobs import Tally

_LOG_SECONDS = 30.0


class CaptionProgress:
    """Shows a `Tally` while images are captioned, in a terminal a bar, else a line now and then; a context manager.

    Args:
        console: where to.
        count: counts the sources; runs in a thread of its own, as walking a large archive takes a while and the
            remaining time is known only then. None if they cannot be counted.
    """

    def __init__(self, console: Console, count: Callable[[], int] | None) -> None:
        self._console = console
        self._sources: int | None = None
        self._logged = time.monotonic()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("captions"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("captions", total=None, note="")
        if count is not None:
            threading.Thread(target=self._count, args=(count,), daemon=True).start()

    def __enter__(self) -> CaptionProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._bar.stop()

    def _count(self, count: Callable[[], int]) -> None:
        with suppress(Exception):  # what is wrong with a source is said where the job comes to it
            self._sources = count()

    def update(self, tally: Tally) -> None:
        """Images that had a row before do not count: they would make the rest look as quick."""
        total = None if self._sources is None else max(self._sources - tally.skipped, tally.images)
        note = f"{plural(tally.errors, 'error')} · {tally.rate:.1f} images/s"
        self._bar.update(self._task, completed=tally.images, total=total, note=note)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._logged > _LOG_SECONDS:
            self._logged = now
            of = "" if total is None else f" of {total:,}, {(total - tally.images) / tally.rate:,.0f} s left"
            self._console.print(f"{tally.images:,} images{of} · {note}", soft_wrap=True)


class ReadingProgress:
    """Shows a `Reading` of a prompt that takes several passes: tokens, speed and the time that is left.

    A context manager. Nothing is shown where stderr is no terminal, nor of a prompt that is read in one pass.
    """

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("reading"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("reading", total=None, note="")

    def __enter__(self) -> ReadingProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._bar.stop()

    def __call__(self, reading: Reading) -> None:
        if reading.tokens == reading.total:
            self._bar.stop()
            return
        note = f"{reading.tokens:,} of {reading.total:,} tokens · {reading.rate:,.0f} tokens/s"
        self._bar.update(self._task, completed=reading.tokens, total=reading.total, note=note)
        self._bar.start()
