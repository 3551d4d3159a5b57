"""`vl bench serve`: a server under load."""

from __future__ import annotations

import json as jsonlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vl.cli.console import (
    EXIT_SOME_FAILED,
    FiguresOption,
    check_charts,
    check_folders,
    check_layers,
    complain,
    plural,
    printable,
    read_path,
    read_size,
    stderr_console,
    stdout_console,
)
from vl.cli.loading import Loading, loading_options
from vl.cli.soak import as_options, server_settings

if TYPE_CHECKING:
    from vl.bench.serving.figures import Figures
    from vl.bench.serving.load import Sent
    from vl.bench.serving.requests import Mixture

_ASKED, _SENT, _JUDGED = "What is asked", "How it is sent", "What is good"
_TEXT = 256  # tokens of a made-up text without an image
_OURS = ("messages", "model", "stream", "stream_options")
_PLENTY = 10**6  # of places for requests that wait
_ONE, _SOON = 1.02, 0.05  # tokens in a piece, and seconds, that are not worth a word


@loading_options()
def serve(
    url: Annotated[
        str | None,
        typer.Option(help="A server that speaks OpenAI's API, such as http://localhost:8000/v1.", show_default="own"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Its name at --url; else what vl serve takes.", show_default="its only one, or nano"
        ),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar=["VL_API_KEY", "OPENAI_API_KEY"], help="Of the server.", show_default=False)
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option("--requests", "--num-prompts", min=1, help="How many.", show_default="64, or all records",
                     rich_help_panel=_ASKED),
    ] = None,
    input_tokens: Annotated[
        int | None,
        typer.Option("--input-tokens", "--random-input-len", min=1, help="Of a made-up text.",
                     show_default=f"{_TEXT}, or a short question about the image", rich_help_panel=_ASKED),
    ] = None,
    output_tokens: Annotated[
        int,
        typer.Option("--output-tokens", "--random-output-len", min=1, help="Of an answer, at most.",
                     rich_help_panel=_ASKED),
    ] = 128,
    image: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="A made-up photograph of this size in each.", show_default=False,
                     rich_help_panel=_ASKED),
    ] = None,
    prefix_share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Part of the text that all share, as a system message.",
                     rich_help_panel=_ASKED),
    ] = 0.0,
    long_share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Part of the requests that have a long text instead.", rich_help_panel=_ASKED),
    ] = 0.0,
    long_tokens: Annotated[int, typer.Option(min=1, help="Of these.", rich_help_panel=_ASKED)] = 4096,
    records: Annotated[
        Path | None,
        typer.Option(help="Ask what the records of this JSON Lines file ask.", show_default=False,
                     rich_help_panel=_ASKED, parser=read_path, metavar="PATH"),
    ] = None,
    extra_body: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="Fields of every request, as in '{\"ignore_eos\": true}'.",
                     show_default=False, rich_help_panel=_ASKED),
    ] = None,
    rate: Annotated[
        float,
        typer.Option("--rate", "--request-rate", help="Arrivals a second, a Poisson process; inf: all at once.",
                     rich_help_panel=_SENT),
    ] = math.inf,
    concurrency: Annotated[
        str | None,
        typer.Option("--concurrency", "--max-concurrency", metavar="N,...", show_default="all",
                     help="Under way at once; several run one after the other.", rich_help_panel=_SENT),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is asked, and when.", rich_help_panel=_SENT)] = 0,
    slo_ttft: Annotated[
        float | None,
        typer.Option(metavar="MS", min=0, help="To the first token.", show_default=False, rich_help_panel=_JUDGED),
    ] = None,
    slo_itl: Annotated[
        float | None,
        typer.Option(metavar="MS", min=0, help="Between tokens, on average over an answer.", show_default=False,
                     rich_help_panel=_JUDGED),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="Of the server that is started, which takes --model as vl plan does."),
    ] = False,
    layers: Annotated[
        int | None, typer.Option(min=1, help="So many of its layers, with --random-weights.", show_default="all")
    ] = None,
    json: FiguresOption = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Also draw latencies into this PNG.", show_default=False,
                     parser=read_path, metavar="PATH"),
    ] = None,
    *,
    loading: Loading,
) -> None:  # fmt: skip
    """Latencies, throughput and goodput of a server under load, as its clients see them."""
    from vl.bench.serving.chart import draw_load
    from vl.bench.serving.figures import Limits, groups
    from vl.bench.serving.requests import Mixture
    from vl.bench.serving.run import Load
    from vl.files import write_file

    check_folders(json, plot)
    check_charts(plot)
    if math.isnan(rate) or rate <= 0:
        raise typer.BadParameter("arrivals a second are more than 0, or inf", param_hint="--rate")
    size = None if image is None else read_size(image)
    mixture = Mixture(
        input_tokens or (0 if size else _TEXT), size, prefix_share, long_share, long_tokens if long_share else 0
    )
    check_mixture(mixture, None if records is None else input_tokens, records)
    at_once = read_concurrency(concurrency)
    random = made_options(random_weights, layers)
    check_server(url, loading, at_once, random)
    limits = None if slo_ttft is None and slo_itl is None else Limits(_seconds(slo_ttft), _seconds(slo_itl))
    room = {"max-waiting": requests or _PLENTY, "max-new-tokens": max(4096, output_tokens)}
    own = (*as_options(server_settings(loading) | room), *random)
    extra = read_extra(extra_body)
    load = Load(url, api_key, model, own, records, requests, mixture, output_tokens, extra, rate, seed)
    runs: dict[str, list[Sent]] = {}
    found: list[tuple[str, Figures]] = []
    for most in at_once:
        name = run_name(rate, most)
        with stderr_console().status(name) as status:
            runs[name] = load.run(most, status.update)
        found += [(name, figures) for figures in groups(runs[name], limits)]
        if json is not None:
            rows = [{"run": run, **figures.as_json()} for run, figures in found]
            write_file(json, jsonlib.dumps(rows, indent=2) + "\n")
    show(found)
    if plot is not None:
        draw_load(runs, plot)
    if any(figures.failed for _, figures in found):
        raise typer.Exit(EXIT_SOME_FAILED)


# Options


def read_concurrency(text: str | None) -> list[int | None]:
    """`1,16` as numbers; None is all at once. Raises BadParameter."""
    if text is None:
        return [None]
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts) or len(set(parts)) < len(parts):
        raise typer.BadParameter(
            f"{printable(text)!r}: give different numbers such as 16 or 1,16", param_hint="--concurrency"
        )
    return [int(part) for part in parts]


def run_name(rate: float, most: int | None) -> str:
    """When requests of a run are sent: at their arrivals, or by how many are under way."""
    if math.isinf(rate):
        return "all at once" if most is None else f"{most} at once"
    return f"{rate:g} a second" + ("" if most is None else f", {most} at once")


def read_extra(text: str | None) -> dict[str, Any]:
    """Fields of requests. Raises BadParameter."""
    try:
        found = jsonlib.loads(text or "{}")
    except ValueError as error:
        raise typer.BadParameter(f"no JSON: {error}", param_hint="--extra-body") from None
    if not isinstance(found, dict):
        raise typer.BadParameter("give an object, such as '{\"ignore_eos\": true}'", param_hint="--extra-body")
    if taken := [name for name in _OURS if name in found]:
        raise typer.BadParameter(f"{', '.join(taken)}: set by the command itself", param_hint="--extra-body")
    return found


def check_mixture(mixture: Mixture, input_tokens: int | None, records: Path | None) -> None:
    """Raises BadParameter naming what would make no difference."""
    made_up = {
        "--input-tokens": input_tokens,
        "--image": mixture.image,
        "--prefix-share": mixture.prefix_share,
        "--long-share": mixture.long_share,
    }
    if records is not None and (given := [name for name, value in made_up.items() if value]):
        raise typer.BadParameter(f"{', '.join(given)} is of made-up requests: leave it out", param_hint="--records")
    if mixture.prefix_share and not mixture.tokens:
        raise typer.BadParameter("a part of which text? Give --input-tokens too", param_hint="--prefix-share")


def made_options(random_weights: bool, layers: int | None) -> Sequence[str]:
    """Of `vl serve`, for a model that is made up. Raises BadParameter."""
    check_layers(layers, random_weights)
    return (*(["--random-weights"] if random_weights else []), *(["--layers", str(layers)] if layers else []))


def check_server(url: str | None, loading: Loading, at_once: Sequence[int | None], random: Sequence[str] = ()) -> None:
    """Raises BadParameter naming what a server that runs already would not hear of."""
    if url is None:
        return
    plain = server_settings(Loading())
    ours = [f"--{name}" for name, value in server_settings(loading).items() if value != plain.get(name)]
    if ours := [*ours, *random[:1]]:
        raise typer.BadParameter(f"{', '.join(ours)}: of a server that this command starts", param_hint="--url")
    if len(at_once) > 1:
        raise typer.BadParameter(
            "what one run leaves in the server's caches would help the next: give one number at a time, and other "
            "--seed for each, or let this command start the server", param_hint="--concurrency",
        )  # fmt: skip


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3


# What is printed


def show(found: Sequence[tuple[str, Figures]]) -> None:
    """Tables, and what the figures do not say by themselves."""
    console = stdout_console()
    console.print(throughput_table(found))
    for name, figures in found:
        console.print(latency_table(f"{name}, {figures.what}", figures))
        for line in notes(figures):
            console.print(line, markup=False)
        for cause, count in figures.failed.items():
            said = f": {message}" if (message := figures.said[cause]) else ""
            complain(f"{plural(count, 'request')} of {name}, {figures.what}: {cause}{said}", kind="failed")
    wholes = [(name, figures) for name, figures in found if figures.what == "all"]
    first = wholes[0][1].requests_per_second
    for name, figures in wholes[1:]:
        ratio = f"{figures.requests_per_second / first:.2f} x" if first else "no"
        console.print(f"{name}: {ratio} the requests/s of {wholes[0][0]}")


def notes(figures: Figures) -> Iterator[str]:
    """What a reader of the figures has to know."""
    if figures.evenness is not None:
        yield f"p99 of ITL is {figures.evenness:.2f} x its median"
    if figures.tokens_per_chunk > _ONE:
        yield (
            f"answers came in pieces of {figures.tokens_per_chunk:.2f} tokens on average: ITL is the time between "
            "pieces, divided by the tokens in the pieces of the answer"
        )
    if figures.uncounted:
        yield f"{plural(figures.uncounted, 'answer')} came without usage: their pieces are counted as tokens"
    if figures.held_back > _SOON:
        yield f"requests were held back here for {figures.held_back:.2f} s on average, which no latency counts"


def throughput_table(found: Sequence[tuple[str, Figures]]) -> Table:
    """A row for each run and group of requests."""
    judged = any(figures.good is not None for _, figures in found)
    columns = (
        "run",
        "requests",
        "answered",
        "failed",
        "s",
        "req/s",
        "input tok",
        "cached",
        "output tok",
        "output tok/s",
    )
    table = Table(*columns, *(("good", "good req/s") if judged else ()))
    for column in table.columns[2:]:
        column.justify = "right"
    for name, figures in found:
        good = (f"{figures.good:,}", f"{figures.good / figures.seconds:.2f}") if figures.good is not None else ()
        table.add_row(
            name,
            figures.what,
            f"{figures.answered:,}",
            f"{sum(figures.failed.values()):,}",
            f"{figures.seconds:.2f}",
            f"{figures.requests_per_second:.2f}",
            f"{figures.input_tokens:,}",
            f"{figures.cached_tokens:,}",
            f"{figures.output_tokens:,}",
            f"{figures.output_tokens / figures.seconds:,.1f}",
            *good,
        )
    return table


def latency_table(title: str, figures: Figures) -> Table:
    """Milliseconds."""
    from vl.bench.serving.figures import LATENCIES

    table = Table("ms", "", "mean", "p50", "p90", "p99", title=title)
    for column in table.columns[2:]:
        column.justify = "right"
    for name, what in LATENCIES.items():
        spread = figures.latencies[name]
        values = () if spread is None else (spread.mean, spread.p50, spread.p90, spread.p99)
        table.add_row(name.upper(), what, *(f"{1e3 * value:,.1f}" for value in values))
    return table
