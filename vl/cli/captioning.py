"""What `vl caption` does: captions as a table or as JSON, or a job that can be killed and continued."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vl.cli.console import (
    EXIT_INTERRUPTED,
    complain,
    plural,
    printable,
    stderr_console,
    stdout_console,
)
from vl.cli.loading import Loading
from vl.cli.progress import CaptionProgress
from vl.cli.where import Where

if TYPE_CHECKING:
    from vl.engine import SamplingParams
    from vl.jobs import Beside, Elsewhere, Prompts, Row, Source, Tally, Tell
    from vl.jobs.sources.passed import Passed
    from vl.model import MiniMaxVL

STDIN = "-"
_MANY = 200
_DETAILS = ("size", "resolution", "tiles", "image tokens")  # columns of a table, if there is room
_DETAILS_WIDTH, _COLUMN_WIDTH = 55, 12  # what these take in a terminal, and the least for each other column


class Run:
    """One `vl caption`: what to caption, with what, and how to show it."""

    def __init__(
        self,
        sources: list[str],
        column: str | None,
        model: str,
        prompts: Prompts,
        json: bool,
        params: SamplingParams,
        where: Where,
        loading: Loading,
    ) -> None:
        self.sources = sources
        self.column = column
        self.model = model
        self.prompts = prompts
        self.json = json
        self.params = params
        self.options = dataclasses.asdict(params) | {"batch_size": loading.engine.max_batch_size}
        self.where = where
        self.loading = loading
        self.messages = stderr_console()
        self.results = stdout_console()

    def names(self) -> Iterator[Source]:
        """The images asked for, at least one."""
        from preprocessing import IMAGE_SUFFIXES

        given = chain.from_iterable(stdin_lines() if s == STDIN else (s,) for s in self.sources)
        names = self.expanded(given, lambda line: complain(line, kind="note"))
        first = next(names, None)
        if first is None:
            where = ", ".join(printable(source) for source in self.sources)
            raise typer.BadParameter(f"no image in {where} (looked for {' '.join(sorted(IMAGE_SUFFIXES))})")
        return chain((first,), names)

    def expanded(self, given: Iterable[str], tell: Tell | None = None, total: Passed | None = None) -> Iterator[Source]:
        from vl.jobs import expand_sources

        return expand_sources(given, tell, column=self.column, prompts=self.prompts, total=total)

    def table(self) -> int:
        """Caption and show everything now; returns how many images failed."""
        from vl.jobs import Tally, caption_rows, work_key

        names = list({work_key(name): name for name in self.names()}.values())
        if len(names) > _MANY and not self.json:
            complain(f"{len(names)} images: --out captions.jsonl would survive an interruption", kind="hint")
        tally, rows = Tally(), []
        try:
            with (
                self.where.opened(self.model, self.loading) as elsewhere,
                CaptionProgress(self.messages, lambda: len(names)) as progress,
            ):
                model = elsewhere or self._loaded()
                for row in chain.from_iterable(caption_rows(model, names, prompt=self.prompts, **self.options)):
                    tally.count(row)
                    progress.update(tally)
                    self._print_json(row)
                    rows.append(row)
        finally:
            if rows and not self.json:
                columns = tuple(self.prompts.values) or self.prompts.columns
                self.results.print(caption_table(rows, columns, self.results.width))
                self.results.print(summary(tally))
        return tally.errors

    def _loaded(self) -> MiniMaxVL:
        """The model; the processes that cut images for it start meanwhile."""
        from vl.jobs.cutting import default_workers, start_ahead
        from vl.loading import pick_device

        start_ahead(default_workers(pick_device(self.loading.device)))
        return self.loading.load(self.model)

    def settings(self) -> dict[str, Any]:
        """What decides a caption of a model in this process, known before it is loaded."""
        from vl.fingerprint import fingerprint
        from vl.hub import resolve_source
        from vl.jobs import settings_of
        from vl.loading import weights_as

        loaded = {name: getattr(self.loading, name) for name in ("device", "dtype", "quantization")}
        dtype, quantization = weights_as(self.model, **loaded)
        return settings_of(
            self.params,
            background=self.loading.background,
            dtype=dtype,
            quantization=quantization,
            weights=fingerprint(resolve_source(self.model)),
        )

    def job(self, out: str, beside: Beside | None, **how: bool) -> int:
        """Bring `out` up to date; returns how many of its rows are errors. `how` is as of `open_rows`."""
        with self.where.opened(self.model, self.loading) as elsewhere:
            return self._job(out, beside, elsewhere, **how)

    def _job(self, out: str, beside: Beside | None, elsewhere: Elsewhere | None, **how: bool) -> int:
        from vl.jobs import open_rows, with_texts, write_rows

        names = self.names()
        name = elsewhere.name if elsewhere else self.model
        settings = elsewhere.settings(self.params) if elsewhere else self.settings()
        rows = open_rows(out, model=name, prompt=self.prompts, settings=settings, **how)
        count = None if STDIN in self.sources else lambda: sum(1 for _ in self.expanded(self.sources))
        try:
            with rows:
                written = with_texts(rows, out, beside, overwrite=how["overwrite"])
                pending = written.pending(names)
                first = next(pending, None)
                if first is None:
                    self._report(f"nothing left to do: {plural(rows.rows, 'row')} in {out}")
                    return self._told(rows.failures, out)
                model = elsewhere or self._loaded()
                with CaptionProgress(self.messages, count) as progress:

                    def on_row(row: Row, tally: Tally) -> None:
                        progress.update(tally)
                        self._print_json(row)

                    tally = write_rows(model, chain((first,), pending), written, on_row=on_row, **self.options)
                failures = rows.failures
        except KeyboardInterrupt:
            complain(f"the rows so far are in {out}; run the same command again for the rest", kind="interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        self._report(f"{summary(tally)} · {out}")
        return self._told(failures, out)

    def _told(self, failures: int, out: str) -> int:
        if failures:
            self._report(f"{plural(failures, 'error')} in {out}: --retry-errors tries again")
        return failures

    def _print_json(self, row: Row) -> None:
        from vl.jobs import encode_row

        if self.json:
            sys.stdout.write(encode_row(row).decode())
            sys.stdout.flush()

    def _report(self, line: str) -> None:
        """Nothing but JSON goes to stdout where JSON was asked for."""
        console: Console = self.messages if self.json else self.results
        console.print(Text(printable(line)), soft_wrap=True)


def stdin_lines() -> Iterator[str]:
    """Sources listed on stdin, one a line. The mark that some editors put before the first is not part of it."""
    for number, line in enumerate(sys.stdin):
        if name := (line if number else line.removeprefix("\ufeff")).rstrip("\r\n"):
            yield name


def caption_table(rows: Iterable[Row], columns: Sequence[str], width: int) -> Table:
    """The table of `vl caption`: what each image is, how it was cut, what it costs and what the model says.

    In a terminal of few columns (`width`) it is of files and captions alone.
    """
    details = _DETAILS if width >= _DETAILS_WIDTH + _COLUMN_WIDTH * (1 + len(columns)) else ()
    table = Table("file", *details, *columns)
    first = 1 + len(details)
    for column in table.columns[1:first]:
        column.justify = "right"
        column.no_wrap = True
    table.columns[0].overflow = "fold"
    for column in table.columns[first:]:
        column.ratio = 1
    for row in rows:
        if "error" not in row:
            said = [Text(printable(_shown(row[column]))) for column in columns]
        else:  # errors name their image, which the first column has already
            said = [Text(printable(row["error"].removeprefix(f"{row['image']}: ")), style="red")]
        table.add_row(Text(printable(row["image"])), *(_details(row) if details else ()), *said)
    return table


def _details(row: Row) -> tuple[str, ...]:
    """What the columns of `_DETAILS` say."""
    known, cut = row["width"] is not None, row["tiles"] is not None  # a server keeps that to itself
    return (
        f"{row['width']} x {row['height']}" if known else "",
        "{} x {}".format(*row["resolution"]) if cut else "",
        str(row["tiles"]) if cut else "",
        f"{row['image_tokens']:,}" if cut else "",
    )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else jsonlib.dumps(value, ensure_ascii=False)


def summary(tally: Tally) -> str:
    """Counts, time and speed in a line."""
    parts = [plural(tally.captions, "caption")]
    if tally.errors:
        parts.append(plural(tally.errors, "error"))
    if tally.skipped:
        parts.append(f"{tally.skipped:,} done before")
    return f"{', '.join(parts)} in {tally.seconds:.1f} s ({tally.rate:.2f} images/s)"
