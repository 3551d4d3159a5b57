"""`vl caption`: images to captions, as a table, as JSON, or as a job that can be killed and continued."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vl.cli.captioning import STDIN, Run
from vl.cli.console import (
    EXIT_SOME_FAILED,
    ModelOption,
    check_options,
    importing,
    read_path,
    stderr_console,
    stdout_console,
    usage_errors,
)
from vl.cli.dryrun import DryRun, DryRunOption, GpusOption, PriceOption, SampleOption
from vl.cli.loading import Loading, loading_options
from vl.cli.report import ReportImagesOption, ReportOption, check_page, write_page
from vl.cli.sampling import sampling_options
from vl.cli.where import EngineOption, EnginesOption, KeyOption, PatienceOption, UrlOption, Where

_BESIDE = "Texts beside the images"


@loading_options(max_batch_size=8)
@sampling_options
def caption(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...",
            help="Image files, folders, globs, .tar shards, .parquet/.csv/.jsonl tables, here or behind a URL (https, "
            "s3, file, ...); - reads a list from stdin.",
        ),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="[COLUMN=]TEXT",
            help="What to ask; by default a description. Repeat it for several, each with a column for its answers. "
            "{name} in it stands for a table's column.",
            show_default=False,
        ),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A JSON schema that answers are held to; its properties become columns of the rows.",
            show_default=False,
            parser=read_path,
        ),
    ] = None,
    model: ModelOption = "nano",
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            help="Rows, made or continued: a .jsonl file, a folder of parts named .parquet, a folder of WebDataset's "
            "shards named .wds, or a bucket's s3:// URL of any of these names.",
            show_default=False,
        ),
    ] = None,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="With --out .wds: captions and rows alone in the shards.")
    ] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="With --out: try images again whose row is an error.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="With --out: start the file again.")] = False,
    mix: Annotated[
        bool, typer.Option("--mix", help="With --out: keep rows of another model, prompt or setting, and go on.")
    ] = False,
    beside: Annotated[
        bool, typer.Option("--beside", help="With --out: write cat.txt beside cat.jpg too, for training tools.")
    ] = False,
    existing: Annotated[
        Literal["skip", "overwrite", "append", "prepend"] | None,
        typer.Option(
            help="With --beside: what becomes of an image whose text is there.",
            show_default="skip",
            rich_help_panel=_BESIDE,
        ),
    ] = None,
    prefix: Annotated[str, typer.Option(help="Before every caption.", rich_help_panel=_BESIDE)] = "",
    suffix: Annotated[str, typer.Option(help="After every caption.", rich_help_panel=_BESIDE)] = "",
    separator: Annotated[
        str, typer.Option(help="Between a text and the caption added to it.", rich_help_panel=_BESIDE)
    ] = " ",
    report: ReportOption = None,
    report_images: ReportImagesOption = None,
    column: Annotated[
        str | None,
        typer.Option(help="Where tables have their images: paths, URLs or bytes. By default found by its name."),
    ] = None,
    dry_run: DryRunOption = False,
    sample: SampleOption = None,
    gpus: GpusOption = None,
    price_per_hour: PriceOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object per image, and nothing else.")] = False,
    engine: EngineOption = "local",
    engines: EnginesOption = None,
    engine_url: UrlOption = None,
    api_key: KeyOption = None,
    patience: PatienceOption = 900.0,
    *,
    context: typer.Context,
    sampling: dict[str, Any],
    loading: Loading,
) -> None:
    """Caption images: a table for a few, [bold]--out captions.jsonl[/bold] for many.

    A job (--out) writes a row per image, with its caption or its error. Killed at any moment, the same command
    finishes the rest: no row is lost, torn or repeated.
    """
    if (retry_errors or overwrite or mix) and out is None:
        raise typer.BadParameter("--retry-errors, --overwrite and --mix go with --out")
    if beside and out is None:
        raise typer.BadParameter(
            "--beside goes with --out, which is the record of what is written: --out captions.jsonl"
        )
    if not beside and (existing is not None or prefix or suffix or separator != " "):
        raise typer.BadParameter("--existing, --prefix, --suffix and --separator go with --beside")
    if separator != " " and existing not in ("append", "prepend"):
        raise typer.BadParameter("--separator goes with --existing append or prepend, which add to a text")
    if out is None and no_images:
        raise typer.BadParameter("--no-images goes with --out captions.wds, whose shards have images")
    if out is None and report is not None:
        raise typer.BadParameter("--report goes with --out, whose rows it shows; vl report OUT does it later")
    if report is None and report_images is not None:
        raise typer.BadParameter("--report-images goes with --report")
    if report is not None:
        check_page(report)
    if gpus is not None and sample:
        raise typer.BadParameter("--sample measures this machine and --gpus plans for another: leave one of them out")
    if not dry_run and (sample, gpus, price_per_hour) != (None, None, None):
        raise typer.BadParameter("--sample, --gpus and --price-per-hour go with --dry-run")
    if price_per_hour is not None and sample == 0 and gpus is None:
        raise typer.BadParameter("--price-per-hour needs a time: measured with --sample, or predicted with --gpus")
    if dry_run and report is not None:
        raise typer.BadParameter("--report goes without --dry-run, which writes nothing")
    where = Where.of(context, patience, engine=engine, engines=engines, url=engine_url, key=api_key)
    with importing():
        from vl.jobs import Beside, Prompts, Schema, check_output, is_table
        from vl.model import DEFAULT_PROMPT
    if column is not None and not any(source == STDIN or is_table(source) for source in sources):
        raise typer.BadParameter("--column goes with a table: .parquet, .csv or .jsonl", param_hint="--column")
    params = check_options(sampling, loading.background)
    with usage_errors():
        prompts = Prompts.parse(prompt or [DEFAULT_PROMPT])
        if schema is not None:
            prompts = prompts.held_to(Schema.of(schema, held_here=engine_url is None))
        if out is not None:
            check_output(out, images=not no_images)
    run = Run(
        sources,
        column,
        model,
        prompts,
        json,
        params,
        where,
        loading,
    )
    how = {"overwrite": overwrite, "retry_errors": retry_errors, "mix": mix, "images": not no_images}
    texts = Beside(existing or "skip", prefix, suffix, separator) if beside else None
    if dry_run:
        DryRun(sample, gpus, price_per_hour)(run, out, texts, how)
        return
    failed = run.table() if out is None else run.job(out, texts, **how)
    if report is not None and out is not None:
        write_page(out, report, report_images, column, stderr_console() if json else stdout_console())
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)
