"""`vl eval`: how often a model is right, on pictures that training never saw or on the user's own questions."""

from __future__ import annotations

import json as jsonlib
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vl.cli.console import (
    EXIT_INTERRUPTED,
    EXIT_SOME_FAILED,
    ModelOption,
    check_charts,
    check_folders,
    check_options,
    complain,
    plural,
    printable,
    read_path,
    stderr_console,
    stdout_console,
)
from vl.cli.loading import Loading, loading_options
from vl.cli.scores import confidence_table, error_table, metric_table, mistake_table, score_table, task_table

if TYPE_CHECKING:
    from vl.evaluation import OutFolder, Result, Row
    from vl.model import MiniMaxVL
    from vl.nano.mix import Mix

_DATA_SUFFIXES = (".jsonl", ".ndjson")
_LOG_SECONDS = 30.0
_READINGS = 100  # texts of each height


@loading_options(max_batch_size=32)
def evaluate(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TASK|DATA.jsonl...",
            help="Built-in tasks (--list shows them), or files of your own questions with their answers.",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every built-in task.")] = False,
    show_list: Annotated[bool, typer.Option("--list", help="Show tasks and metrics, and exit.")] = False,
    model: ModelOption = "nano",
    metric: Annotated[
        str | None,
        typer.Option(
            help="Judge all records of DATA.jsonl by this metric; by default their task's.", show_default=False
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Examples of each task or file.", show_default="500 pictures, all records"),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens generated at most.", show_default="the task's, 256 for a file")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG.toml", help="Draw what this training recipe draws.", show_default="nano's", parser=read_path
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for examples.jsonl, scores.json and failures.html.",
            show_default=False,
            parser=read_path,
            metavar="PATH",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="With --out: replace an earlier evaluation.")] = False,
    gallery: Annotated[int, typer.Option(min=0, help="With --out: failures shown of each task, worst first.")] = 100,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object per task: scores and every row.")] = False,
    resolution: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Instead of tasks: plot how well print of several heights is read, with tiles and from the thumbnail.",
            show_default=False,
            parser=read_path,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Plot how often answers are right against how likely the model held them.",
            show_default=False,
            parser=read_path,
        ),
    ] = None,
    *,
    loading: Loading,
) -> None:
    """Score a model on built-in tasks, or on your own questions.

    A line of [bold]DATA.jsonl[/bold] is {"messages": [...], "answer": "...", "task": "ocr"}; see
    docs/evaluation.md. A record that cannot be used is a row with an error.
    [bold]vl eval niah[/bold] finds needles in haystacks, with options of its own.
    """
    from vl.evaluation import OutFolder
    from vl.evaluation.metrics.distance import check_installed

    if show_list:
        stdout_console().print(task_table(), metric_table())
        return
    check_installed()
    if overwrite and out is None:
        raise typer.BadParameter("--overwrite goes with --out")
    check_options({} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}, loading.background)
    check_folders(resolution, plot)
    check_charts(resolution, "--resolution")
    check_charts(plot)
    batch_size = loading.engine.max_batch_size
    if resolution is not None:
        if names or everything or out or recipe or plot:
            raise typer.BadParameter(
                "goes with the options of the model and of answering alone", param_hint="--resolution"
            )
        loaded = loading.load(model)
        _read_by_height(loaded, resolution, _Run(count, batch_size, None, max_new_tokens, None, None))
        return
    jobs = _jobs(names or [], everything, metric)
    if recipe is not None and all(map(_is_file, jobs)):
        raise typer.BadParameter("--recipe goes with built-in tasks; a file has its own questions")
    mix = None if recipe is None else _read_mix(recipe)
    folder = None if out is None else OutFolder(out, overwrite=overwrite)
    run = _Run(count, batch_size, metric, max_new_tokens, mix, folder)
    totals = [run.total(job) for job in jobs]
    loaded = loading.load(model)
    results: list[Result] = []
    try:
        with folder or nullcontext():
            for job, total in zip(jobs, totals, strict=True):
                for result in run(loaded, job, total):
                    results.append(result)
                    if json:
                        print(jsonlib.dumps({"model": model, **result.to_json()}, ensure_ascii=False), flush=True)
            if folder:
                folder.finish(model, results, gallery, background=loading.background)
    except KeyboardInterrupt:
        if folder:
            complain(f"the answers so far are in {folder.path}", kind="interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not json:
        _show(model, results, folder)
    if plot is not None:
        _plot_confidence(model, results, plot)
    if any(result.errors for result in results):
        raise typer.Exit(EXIT_SOME_FAILED)


def _jobs(names: list[str], everything: bool, metric: str | None) -> list[str]:
    """The built-in tasks and files asked for, each once."""
    from vl.evaluation import METRICS, find_tasks

    tasks = {} if names and all(map(_is_file, names)) and not everything else find_tasks()
    jobs = list(dict.fromkeys([*names, *(filter(_can_draw, tasks) if everything else ())]))
    if not jobs:
        raise typer.BadParameter(f"name a task ({', '.join(tasks)}) or a .jsonl file, or use --all")
    if "niah" in jobs:
        raise typer.BadParameter("niah has options of its own, and goes first: vl eval niah --help")
    for name in jobs:
        if name not in tasks and not _is_file(name):
            raise typer.BadParameter(f"{printable(name)} is neither a task ({', '.join(tasks)}) nor a .jsonl file")
    if metric is not None and metric not in METRICS:
        raise typer.BadParameter(f"choose from {', '.join(METRICS)}", param_hint="--metric")
    if metric is not None and all(name in tasks for name in jobs):
        raise typer.BadParameter("--metric goes with a .jsonl file; a built-in task has its own")
    return jobs


def _read_mix(recipe: Path) -> Mix:
    from vl.nano.mix import Mix
    from vl.training import TrainConfig

    return Mix.of(TrainConfig.read(recipe).data.mix)


def _is_file(name: str) -> bool:
    return name.lower().endswith(_DATA_SUFFIXES)


def _can_draw(task: str) -> bool:
    """Whether what a task draws with is installed; says so if not, as `--all` goes on without it."""
    from vl.errors import ConfigError
    from vl.evaluation import find_task

    try:
        next(find_task(task).examples())
    except ConfigError as error:
        complain(f"{task}: {error}", kind="skipped")
        return False
    return True


class _Run:
    """How to evaluate: the options that every task and file shares."""

    def __init__(
        self,
        count: int | None,
        batch_size: int,
        metric: str | None,
        max_new_tokens: int | None,
        mix: Mix | None,
        folder: OutFolder | None,
    ) -> None:
        self.count = count
        self.batch_size = batch_size
        self.metric = metric
        self.max_new_tokens = max_new_tokens
        self.mix = mix
        self.folder = folder

    def total(self, job: str) -> int:
        """How many examples there will be; a file that cannot be read ends the run before the model is loaded."""
        from vl.evaluation import count_records
        from vl.evaluation.evaluate import DEFAULT_COUNT

        if not _is_file(job):
            return self.count or DEFAULT_COUNT
        records = count_records(job)
        return min(records, self.count or records)

    def __call__(self, model: MiniMaxVL, job: str, total: int) -> list[Result]:
        from vl.evaluation import evaluate, evaluate_file

        with _Progress(stderr_console(), Path(job).name, total) as progress:

            def on_rows(rows: list[Row]) -> None:
                if self.folder:
                    self.folder.append(rows)
                progress.advance(rows)

            if not _is_file(job):
                return [
                    evaluate(
                        model,
                        job,
                        total,
                        self.batch_size,
                        mix=self.mix,
                        max_new_tokens=self.max_new_tokens,
                        on_rows=on_rows,
                    )
                ]
            return evaluate_file(
                model,
                job,
                total,
                self.batch_size,
                metric=self.metric,
                max_new_tokens=self.max_new_tokens,
                on_rows=on_rows,
            )


class _Progress:
    """A bar on a terminal, a line now and then in a log; a context manager."""

    def __init__(self, console: Console, name: str, total: int) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self._console, self._name, self._total = console, printable(name), total
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task(self._name, total=total, note="")
        self._done = self._errors = 0
        self._logged = time.monotonic()

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, rows: list[Row]) -> None:
        self._done += len(rows)
        self._errors += sum(row.error is not None for row in rows)
        note = plural(self._errors, "error") if self._errors else ""
        self._bar.update(self._task, completed=self._done, note=note)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._logged > _LOG_SECONDS:
            self._logged = now
            line = f"{self._name}: {self._done:,} of {self._total:,} {note}".rstrip()
            self._console.print(Text(line), soft_wrap=True)


def _read_by_height(model: MiniMaxVL, file: Path, run: _Run) -> None:
    from vl.errors import InputError
    from vl.nano.resolution import HEIGHTS, draw_readings, read_by_height

    count = run.count or _READINGS
    with _Progress(stderr_console(), "texts", 2 * count * len(HEIGHTS)) as progress:
        readings = read_by_height(
            model, count, batch_size=run.batch_size, max_new_tokens=run.max_new_tokens, on_rows=progress.advance
        )
    table = Table("px per em", "tiles and thumbnail", "thumbnail alone", title="Character error rate")
    for reading in readings:
        table.add_row(str(reading.height), f"{reading.tiles:.1%}", f"{reading.thumbnail:.1%}")
    stdout_console().print(table)
    try:
        draw_readings(readings, file, model.name)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror or error}") from error


def _plot_confidence(model: str, results: list[Result], file: Path) -> None:
    from vl.errors import InputError
    from vl.evaluation import confidence, draw_confidence

    named = [(result.task, found) for result in results if (found := result.confidence)]
    together = confidence(row for result in results for row in result.rows)
    if together is None:
        raise InputError(f"nothing to plot in {file}: no answer has a confidence")
    try:
        draw_confidence([("all answers", together)] if len(named) != 1 else named, file, model)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror or error}") from error


def _show(model: str, results: list[Result], folder: OutFolder | None) -> None:
    console = stdout_console()
    console.print(score_table(results, model))
    if told := confidence_table(results):
        console.print(told)
    if len(results) == 1 and (mistakes := mistake_table(results[0])):
        console.print(mistakes)
    if errors := error_table(results):
        console.print(errors)
    if folder:
        from vl.evaluation.output import FAILURES

        console.print(Text(f"what went wrong: {printable(str(folder.path / FAILURES))}"), soft_wrap=True)
