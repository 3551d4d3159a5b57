"""`vl eval niah`: needles in haystacks, by the length of the prompt and the depth of the needle."""

from __future__ import annotations

import hashlib
import json as jsonlib
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vl.cli.console import (
    EXIT_INTERRUPTED,
    EXIT_SOME_FAILED,
    ModelOption,
    check_options,
    complain,
    plural,
    printable,
    read_path,
    read_tokens,
    stderr_console,
    stdout_console,
)
from vl.cli.loading import Loading, loading_options

if TYPE_CHECKING:
    from vl.evaluation.niah import Case, Failed, Grid, NeedleFolder, Result, Row
    from vl.model import MiniMaxVL

_LENGTHS, _DEPTHS, _DEPTHS_FILES, _COUNT = "1K,2K,4K,8K", "0,25,50,75,100", "25,50,75", 4
_NEW_TOKENS, _NEW_TOKENS_FILES = 32, 256
_KINDS = {"text": "needles in text", "pages": "needles on pages", "rounds": "answers of long chats"}
_LOG_SECONDS = 30.0
_ERRORS = 20


@loading_options(without=["background"], max_batch_size=8, prefix_memory=0)  # no two prompts begin alike
def niah(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DATA.jsonl...",
            help="Long chats in MR-NIAH's layout; without any, prompts are made.",
            show_default=False,
            parser=read_path,
        ),
    ] = None,
    model: ModelOption = "nano",
    lengths: Annotated[
        str | None,
        typer.Option(help="Tokens of the prompts that are made, with template and question.", show_default=_LENGTHS),
    ] = None,
    depths: Annotated[
        str | None,
        typer.Option(
            help="Where the needles lie, in percent of the haystack.",
            show_default=f"{_DEPTHS}, for files {_DEPTHS_FILES}",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Prompts of each length and depth.", show_default=str(_COUNT))
    ] = None,
    distractors: Annotated[
        int | None, typer.Option(min=0, max=1000, help="Needles that are not asked for.", show_default="0")
    ] = None,
    haystack: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE.txt", help="Hay; may be repeated.", show_default="sentences that are drawn", parser=read_path
        ),
    ] = None,
    pages: Annotated[bool, typer.Option("--pages", help="Print the haystack on page images.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the prompts.", show_default="0")] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens generated at most.", show_default=f"{_NEW_TOKENS}, for files {_NEW_TOKENS_FILES}"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for rows.jsonl, scores.json and heatmap.png. The same command goes on with what is there.",
            show_default=False,
            parser=read_path,
            metavar="PATH",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="With --out: start again.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object: scores by cell, and every row.")] = False,
    *,
    loading: Loading,
) -> None:
    """Find needles in haystacks: what a model still reads in long prompts.

    A sentence with a code is hidden in text, or on page images, and asked for. The score is the share that is found.
    """
    from vl.evaluation.niah import NeedleFolder, check_grid
    from vl.fingerprint import fingerprint
    from vl.hub import resolve_source

    if overwrite and out is None:
        raise typer.BadParameter("--overwrite goes with --out")
    made = {
        "--lengths": lengths,
        "--count": count,
        "--distractors": distractors,
        "--haystack": haystack,
        "--pages": pages or None,
        "--seed": seed,
    }
    if files and (given := [name for name, value in made.items() if value is not None]):
        raise typer.BadParameter("goes with prompts that are made, not with files", param_hint=given[0])
    most = max_new_tokens or (_NEW_TOKENS_FILES if files else _NEW_TOKENS)
    check_options({"max_new_tokens": most}, None)
    places = _read_depths(depths if depths is not None else _DEPTHS_FILES if files else _DEPTHS)
    grid = None
    if not files:
        grid = _grid(
            _read_lengths(_LENGTHS if lengths is None else lengths), places, count, distractors, haystack, pages, seed
        )
    cases = [*grid.cases()] if grid else _chats(files or [], places)
    settings = {"model": model, "weights": fingerprint(resolve_source(model)), "max_new_tokens": most}
    settings |= {"dtype": loading.dtype, "quantization": loading.quantization}
    settings |= _kind(grid, haystack) if grid else {"kind": "rounds", "sha256": _digests(files or [])}
    folder = None if out is None else NeedleFolder(out, settings, overwrite=overwrite)
    loaded = loading.load(model)
    if grid:
        check_grid(loaded, grid, most)
    result = _find(loaded, cases, places, loading.engine.max_batch_size, settings, folder)
    if json:
        print(jsonlib.dumps(result.to_json(), ensure_ascii=False), flush=True)
    else:
        _show(result, folder)
    if result.errors:
        raise typer.Exit(EXIT_SOME_FAILED)


def _read_lengths(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(map(read_tokens, text.split(","))))


def _read_depths(text: str) -> tuple[float, ...]:
    try:
        depths = sorted({float(part) for part in text.split(",")})
    except ValueError:
        depths = []
    if not depths or not all(0 <= depth <= 100 for depth in depths):
        raise typer.BadParameter(f"{printable(text)!r} are not depths: write percents, as in {_DEPTHS}")
    return tuple(depths)


def _grid(
    lengths: tuple[int, ...],
    depths: tuple[float, ...],
    count: int | None,
    distractors: int | None,
    haystack: list[Path] | None,
    pages: bool,
    seed: int | None,
) -> Grid:
    from vl.evaluation.niah import Grid, drawn_hay, file_hay

    hay = file_hay(haystack) if haystack else drawn_hay
    return Grid(lengths, depths, count or _COUNT, distractors or 0, pages, hay, seed or 0)


def _chats(files: list[Path], depths: tuple[float, ...]) -> list[Case | Failed]:
    """The chats of all files; that one cannot be read ends the run before the model is loaded."""
    from vl.errors import InputError
    from vl.evaluation.niah import read_rounds

    named: dict[str, Path] = {}
    for file in files:
        if (other := named.setdefault(file.name, file)) != file:
            raise InputError(f"{other} and {file} have one name, by which their chats are known: rename one of them")
    cases = [case for file in named.values() for case in read_rounds(file, depths)]
    if not cases:
        raise InputError(f"{', '.join(map(str, files))}: no records: there should be a line of JSON for each chat")
    return cases


def _kind(grid: Grid, haystack: list[Path] | None) -> dict[str, Any]:
    """What the prompts are, as far as their ids do not say."""
    kind, texts = "pages" if grid.pages else "text", [*map(_digest, haystack or [])]
    return {"kind": kind, "distractors": grid.distractors, "haystack": texts or "drawn", "seed": grid.seed}


def _digests(files: list[Path]) -> dict[str, str]:
    """Of the files by their names, which prompts are known by."""
    return {file.name: _digest(file) for file in files}


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]


def _find(
    model: MiniMaxVL,
    cases: Sequence[Case | Failed],
    depths: tuple[float, ...],
    batch_size: int,
    settings: dict[str, Any],
    folder: NeedleFolder | None,
) -> Result:
    """The result, written to the folder row by row."""
    from vl.evaluation.niah import find_needles

    try:
        with folder or nullcontext(), _Progress(cases, folder.done if folder else {}) as progress:

            def on_row(row: Row) -> None:
                if folder:
                    folder.append(row)
                progress.advance(row)

            result = find_needles(
                model,
                cases,
                depths,
                batch_size=batch_size,
                max_new_tokens=settings["max_new_tokens"],
                settings=settings,
                done=folder.done if folder else None,
                on_row=on_row,
            )
            if folder and not folder.finish(result, _title(result)):
                complain(
                    "no heat map without matplotlib: pip install 'minimax-vl[eval]', and the same command draws it",
                    kind="warning",
                )
    except KeyboardInterrupt:
        if folder:
            complain(f"the answers so far are in {folder.path}: the same command goes on", kind="interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    return result


class _Progress:
    """A bar of tokens on a terminal, a line now and then in a log; a context manager."""

    def __init__(self, cases: Sequence[Case | Failed], done: Mapping[str, Row]) -> None:
        self._sizes = {case.id: getattr(case, "length", 0) for case in cases if case.id not in done}
        self._console, self._done = stderr_console(), 0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=sum(self._sizes.values()), note=self._note)
        self._logged = time.monotonic()

    @property
    def _note(self) -> str:
        return f"{self._done:,} of {len(self._sizes):,}"

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, row: Row) -> None:
        self._done += 1
        self._bar.update(self._task, advance=self._sizes[row.id], note=self._note)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._logged > _LOG_SECONDS:
            self._logged = now
            self._console.print(Text(f"prompts: {self._note}, up to {row.length or 0:,} tokens"), soft_wrap=True)


def _title(result: Result) -> str:
    """Of the table and the picture."""
    model, kind = result.settings["model"], result.settings["kind"]
    prompts = sum(row.score is not None for row in result.rows)
    return f"{_KINDS[kind]} found by {printable(model)}, {plural(prompts, 'prompt')}"


def _show(result: Result, folder: NeedleFolder | None) -> None:
    from vl.evaluation.niah import short

    console = stdout_console()
    table = Table("depth", *map(short, result.lengths), "all")
    for column in table.columns:
        column.justify = "right"
    for depth, cells in zip(result.depths, result.cells(), strict=True):
        table.add_row(f"{depth:g}%", *map(_percent, (*cells, result.score(depth=depth))))
    table.add_section()
    table.add_row("all", *map(_percent, (*map(result.score, result.lengths), result.score())))
    console.print(Text(_title(result)), table)
    for row in result.errors[:_ERRORS]:
        console.print(Text(f"{printable(row.id)}: {printable(row.error or '')}", style="red"), soft_wrap=True)
    if more := len(result.errors[_ERRORS:]):
        console.print(Text(f"and {plural(more, 'more error')}", style="red"))
    if folder:
        console.print(Text(f"rows, scores and heat map: {printable(str(folder.path))}"), soft_wrap=True)


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{score:.0%}"
