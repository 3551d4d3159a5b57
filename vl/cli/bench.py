"""`vl bench`: the project's measurements, on this machine."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from vl.cli import experts, jobs, load, long, numerics, quality, serving, soak, whole
from vl.cli.console import (
    EXIT_SOME_FAILED,
    DeviceOption,
    FiguresOption,
    Quantization,
    ScaleOption,
    complain,
    read_path,
    stderr_console,
    stdout_console,
)

if TYPE_CHECKING:
    from vl.bench.patcher import PatcherRow
    from vl.bench.records import Report
    from vl.bench.runner import Options, Say

app = typer.Typer(help="Measure on this machine.", no_args_is_help=True)

PlotOption = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        help="Also draw charts of time against size into this PNG.",
        show_default=False,
        parser=read_path,
        metavar="PATH",
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(help="Only what has this in its name, as in 'lightning'; may be repeated.", show_default=False),
]
QuickOption = Annotated[bool, typer.Option("--quick", help="Less time per figure, and no PyTorch references.")]
RepeatsOption = Annotated[int, typer.Option(min=1, help="Times each contender runs; the median counts.")]


app.command("quality")(quality.quality)
app.command("numerics")(numerics.numerics)
app.command("whole")(whole.whole)
app.command("long")(long.long)
app.command("experts")(experts.experts)
app.command("load")(load.load)
app.command("jobs")(jobs.jobs)
app.command("serve")(serving.serve)
app.command("soak")(soak.soak)


@app.callback()
def _bench() -> None:
    """Measure on this machine."""


@app.command("ops")
def ops(
    json: FiguresOption = None,
    plot: PlotOption = None,
    scale: ScaleOption = None,
    only: OnlyOption = None,
    quick: QuickOption = False,
    device: DeviceOption = None,
) -> None:
    """Every op of the backbone beside its floor, its PyTorch reference and installed peers."""
    _measure(["ops"], json, plot, scale, only, quick, device)


@app.command("model")
def model(
    json: FiguresOption = None,
    plot: PlotOption = None,
    scale: ScaleOption = None,
    only: OnlyOption = None,
    quick: QuickOption = False,
    device: DeviceOption = None,
    quantization: Annotated[
        Quantization | None, typer.Option(help="Format of the layers' matrices.", show_default="16 bits")
    ] = None,
) -> None:
    """Eight layers of full width with random weights: reading prompts and writing tokens."""
    _measure(["model"], json, plot, scale, only, quick, device, quantization=quantization)


@app.command("vision")
def vision(
    json: FiguresOption = None,
    plot: PlotOption = None,
    scale: ScaleOption = None,
    only: OnlyOption = None,
    quick: QuickOption = False,
    device: DeviceOption = None,
) -> None:
    """The vision tower from uint8 tiles to features, beside timm and transformers."""
    _measure(["vision"], json, plot, scale, only, quick, device)


@app.command("all")
def everything(
    json: FiguresOption = None,
    plot: PlotOption = None,
    scale: ScaleOption = None,
    quick: QuickOption = False,
    device: DeviceOption = None,
    repeats: RepeatsOption = 15,
) -> None:
    """Ops, vision, model and patcher, one after the other."""
    _measure(["ops", "vision", "model"], json, plot, scale, None, quick, device, repeats=repeats)


@app.command("patcher")
def patcher(repeats: RepeatsOption = 15, json: FiguresOption = None) -> None:
    """Time from an image to its tiles: ours, the recipe done with Pillow, and transformers' processors."""
    if json is not None:
        _writable(json, "--json")
    figures = _patcher_figures(repeats)
    if json is not None:
        _write(json, figures)


@app.command("head")
def head(
    tokens: Annotated[int, typer.Option(min=1, help="Random tokens to choose for.")] = 4096,
    scale: ScaleOption = None,
    device: DeviceOption = None,
) -> None:
    """How often the output head chooses the token that float64 sums do, beside one that rounds logits to bfloat16."""
    from vl.bench.agreement import agreement
    from vl.loading import pick_device

    place = pick_device(device)
    small = place.type != "cuda" if scale is None else scale == "small"
    ours, rounded = agreement(place, tokens=tokens, small=small)
    table = Table("logits", "best token as by float64", title=f"output head, {tokens:,} tokens")
    table.add_row("float32 (ours)", f"{ours:.2%}")
    table.add_row("rounded to bfloat16", f"{rounded:.2%}")
    stdout_console().print(table)


@app.command("tune")
def tune(
    op: Annotated[str, typer.Argument(help="moe, row-scaled (int8 and FP8) or lightning.")],
    only: Annotated[str, typer.Option(help="Only the sweeps that have this in their name.")] = "",
) -> None:
    """Time an op's candidate tile configurations on this GPU, and print the fastest as Python data."""
    from vl.bench.tune import as_python
    from vl.bench.tune import tune as measured

    console, results = stdout_console(), []
    with _telling() as say:
        for result in measured(op, only=only, say=say):
            results.append(result)
            console.print(f"[bold]{escape(result.name)}[/]")
            for ms, candidate in result.times:
                mark = "  <- now" if candidate == result.now else ""
                console.print(f"  {ms:9.4f} ms  {candidate}{mark}", markup=False)
            for reason, candidate in result.failed:
                console.print(f"     failed     {candidate}: {reason}", markup=False)
    console.print(as_python(results), markup=False, soft_wrap=True)


def _patcher_figures(repeats: int) -> list[dict[str, Any]]:
    from vl.bench.patcher import bench_patcher

    rows = bench_patcher(repeats=repeats)
    stdout_console().print(patcher_table(rows))
    return [asdict(row) | {"ratio": row.ratio, "pillow_ratio": row.pillow_ratio} for row in rows]


def _measure(
    suites: Sequence[str],
    json: Path | None,
    plot: Path | None,
    scale: Literal["full", "small"] | None,
    only: list[str] | None,
    quick: bool,
    device: str | None,
    *,
    repeats: int | None = None,
    quantization: str | None = None,
) -> None:
    """Run suites and, given `repeats`, the patcher; print and write as the figures come."""
    from vl.bench.charts import draw
    from vl.bench.runner import Options, start
    from vl.bench.tables import absent, heading

    for path, option in ((json, "--json"), (plot, "--plot")):
        if path is not None:
            _writable(path, option)
    options = Options(device, scale, only or (), quick, quantization)
    with _telling() as say:
        say("ceilings")
        report = start(options)
    extra: dict[str, Any] = {}
    console = stdout_console()
    console.print(heading(report))
    for suite in suites:
        _run(suite, report, options, json)
    if missing := absent(report):
        console.print(f"not installed, so not compared with: {', '.join(missing)}")
    if repeats is not None:
        extra["patcher"] = _patcher_figures(repeats)
    if json is not None:
        _write(json, report.as_json() | extra)
    if plot is not None:
        try:
            if not draw(report, plot):
                complain("nothing was measured at several sizes, so there is no chart", kind="warning")
        except ImportError as error:
            raise typer.BadParameter("charts need matplotlib: pip install matplotlib", param_hint="--plot") from error
    if any(record.contender == "ours" and record.error for record in report.records):
        raise typer.Exit(EXIT_SOME_FAILED)


def _run(suite: str, report: Report, options: Options, json: Path | None) -> None:
    """Measure a suite; each op is printed, and the file written, as soon as all its contenders are measured."""
    from vl.bench.runner import run_suite
    from vl.bench.tables import failures, op_table

    console, known = stdout_console(), set(report.ops())

    def show() -> None:
        for op in [op for op in report.ops() if op not in known]:
            known.add(op)
            console.print(op_table(report, op))
            for line in failures(report, op):
                complain(line, kind="failed")

    def finished(group: str) -> None:
        if suite != "model":  # whose contenders are groups, of the same ops
            show()
        if json is not None:
            _write(json, report.as_json())

    with _telling() as say:
        run_suite(suite, report, options, say=say, finished=finished)
    show()


@contextmanager
def _telling() -> Iterator[Say]:
    """A line on the terminal that says what is being measured."""
    console = stderr_console()
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("starting") as status:
        yield lambda what: status.update(f"measuring {what}")


def _writable(path: Path, option: str) -> None:
    """Refuse a path now that could not be written after minutes of measuring."""
    try:
        path.open("ab").close()
    except OSError as error:
        raise typer.BadParameter(f"cannot write {path}: {error.strerror}", param_hint=option) from error


def _write(path: Path, figures: Any) -> None:
    path.write_text(jsonlib.dumps(figures, indent=2) + "\n", "utf-8")


def patcher_table(rows: Sequence[PatcherRow]) -> Table:
    """Milliseconds, our share of transformers' time, and whether the pixels are the recipe's."""
    table = Table(
        "image",
        "tiles",
        "ours ms",
        "recipe ms",
        "transformers ms",
        "its Pillow ms",
        "ratio",
        "Pillow ratio",
        "identical",
    )
    for column in table.columns:
        column.justify = "right"
    for row in rows:
        table.add_row(
            f"{row.width} x {row.height}",
            str(row.tiles),
            f"{row.ours_ms:.1f}",
            f"{row.recipe_ms:.1f}",
            *(_number(value, ".1f") for value in (row.transformers_ms, row.transformers_pillow_ms)),
            *(_number(value, ".2f") for value in (row.ratio, row.pillow_ratio)),
            "yes" if row.identical else "NO",
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
