"""`vl plan`: what a model needs to run, before anything is downloaded or bought."""

from __future__ import annotations

import json as jsonlib
import re
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from vl.cli.console import EXIT_UNUSABLE, complain, printable, stdout_console, tokens_option
from vl.engine.config import EngineConfig

if TYPE_CHECKING:
    from rich.console import Console

    from vl.config import VLConfig
    from vl.plan import Machine, Option, Plan, Workload

_MOST_GIB = 2**20
_IMAGE_SIZE = "1344x1008"
_SHOWN = 4  # machines of a format, where none was named
_WIDE = 120  # columns of a terminal that has room for the whole table
_WORDS = ("machine", "format", "placement", "")  # columns without numbers
_PARTS = frozenset({"weights", "cache", "other", "host GiB"})
# What a table is without, from wide terminals to narrow ones.
_LEFT_OUT = (
    frozenset({"total"}),
    _PARTS,
    _PARTS | {"of", "prefill"},
    _PARTS | {"of", "prefill", "placement", "context"},
)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})[xX×](\d{1,9})", text)
    if not match:
        raise typer.BadParameter(f"{text!r} is not a size: write WIDTHxHEIGHT in pixels, as in 1344x1008")
    return int(match[1]), int(match[2])


GpusOption = Annotated[
    str | None,
    typer.Option(help="As in 8xH100-80GB; without it, the smallest machines that work.", show_default=False),
]
QuantizationOption = Annotated[
    list[str] | None,
    typer.Option(help="Only this format: bf16, int8, fp8 or nf4; may be repeated.", show_default=False),
]
TokensOption = Annotated[int, tokens_option("--context", help="Tokens of each sequence: 32768, 32K, 1M.")]


def plan(
    model: Annotated[
        str, typer.Argument(help="MiniMax-VL-01 or MiniMax-Text-01 (built in), nano, a folder, or a config.json.")
    ] = "MiniMax-VL-01",
    gpus: GpusOption = None,
    quantization: QuantizationOption = None,
    context: TokensOption = 32768,
    batch: Annotated[int, typer.Option(min=1, help="Sequences that run at once.")] = 1,
    images: Annotated[int, typer.Option(min=0, help="Images of each sequence; their tokens are added.")] = 0,
    image_size: Annotated[
        str | None, typer.Option(help="Their width and height in pixels.", show_default=_IMAGE_SIZE)
    ] = None,
    prefill_tokens: Annotated[int, tokens_option(help="Prompt tokens read in a pass.")] = EngineConfig.prefill_tokens,
    host_memory: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=_MOST_GIB,
            help="GiB of the host's memory that experts, keys and values may take.",
            show_default=False,
        ),
    ] = None,
    host_cache_tokens: Annotated[
        int, tokens_option(least=0, help="Tokens, of all sequences, with keys and values in host memory.")
    ] = EngineConfig.host_cache_tokens,
    gpu_memory: Annotated[
        float | None, typer.Option(help="GiB of a GPU, instead of what is known.", show_default=False)
    ] = None,
    gpu_bandwidth: Annotated[float | None, typer.Option(help="TB/s of its memory.", show_default=False)] = None,
    gpu_bf16: Annotated[float | None, typer.Option(help="Its dense bf16 TFLOP/s.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """What fits where, and how fast: memory, context and speed, predicted. Nothing is downloaded.

    Without [bold]--gpus[/bold], for each format the smallest machines that hold the model.
    """
    from vl.plan import Workload, image_cost, smallest
    from vl.plan import plan as plan_on
    from vl.plan.models import find_config
    from vl.plan.record import as_json

    formats = _formats(quantization or [])
    size = _size(_IMAGE_SIZE if image_size is None else image_size)
    if image_size is not None and not images:
        raise typer.BadParameter("--image-size goes with --images: say how many there are")
    if gpus is None and (gpu_memory, gpu_bandwidth, gpu_bf16) != (None, None, None):
        raise typer.BadParameter("--gpu-memory, --gpu-bandwidth and --gpu-bf16 go with --gpus")
    config = find_config(model)
    cost = image_cost(config, *size) if images else (0, 0)
    work = Workload(context, batch, images, *cost, prefill_tokens=prefill_tokens, host_cache_tokens=host_cache_tokens)
    host = None if host_memory is None else int(host_memory * 2**30)
    if gpus is None:
        found = smallest(config, work, formats, host)
    else:
        found = plan_on(config, _machine(gpus, gpu_memory, gpu_bandwidth, gpu_bf16, host), work, formats)
    if json:
        stdout_console().out(jsonlib.dumps(as_json(model, config, found), indent=2))
    else:
        _show(model, config, found, _SHOWN if gpus is None and not quantization else None)
    if found.best is None:
        complain(_nothing_fits(config, gpus, work, formats, host))
        raise typer.Exit(EXIT_UNUSABLE)


def _formats(names: list[str]) -> list[str]:
    from vl.errors import ConfigError
    from vl.plan import find_format

    try:
        return [find_format(name).name for name in dict.fromkeys(names)]
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--quantization") from None


def _machine(text: str, memory: float | None, bandwidth: float | None, bf16: float | None, host: int | None) -> Machine:
    """A usage error says what is known."""
    from vl.errors import ConfigError
    from vl.plan import Machine, describe_gpu, parse_machine

    try:
        count, name = parse_machine(text)
        return Machine(describe_gpu(name, memory=memory, bandwidth=bandwidth, bf16=bf16), count, host)
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--gpus") from None


def _nothing_fits(config: VLConfig, gpus: str | None, work: Workload, formats: list[str], host: int | None) -> str:
    """What would do: in the formats that were asked for, and in any."""
    from vl.plan import smallest

    if gpus is None:
        return "no known machine holds this: lower --context or --batch"
    found = [option for names in (formats, []) if (option := smallest(config, work, names, host).best)]
    works = dict.fromkeys(f"{option.machine.name} with {option.format}" for option in found)
    if not works:
        more = "" if host is None else ", or allow more --host-memory"
        return f"nothing fits on {gpus}, nor on any known machine: lower --context or --batch{more}"
    return f"nothing fits on {gpus}: the smallest that works is {' or '.join(works)}"


def _show(name: str, config: VLConfig, plan: Plan, most: int | None) -> None:
    """The table, and below it what its numbers mean."""
    from vl.plan.planner import NO_ROOM
    from vl.plan.sizes import parameters

    console, work = stdout_console(), plan.workload
    images = f", {work.images} images of {work.image_tokens:,} tokens each among them" if work.images else ""
    console.print(
        f"{printable(name)}: {parameters(config.text, config.vision) / 1e9:,.3g} B parameters; sequences at once: "
        f"{work.batch:,}, each of {work.tokens:,} tokens{images}",
        markup=False,
    )
    kept, left = _first_of_each(plan.options, most)
    console.print(_fitting_table(kept, console))
    console.print(
        "GiB of the fullest GPU; other: activations, and what CUDA takes. context: the most tokens of a sequence. "
        "prefill: tokens/s of one prompt of all these tokens, images encoded too; decode: of all sequences together. "
        "Predicted; docs/plan.md says from what.",
        markup=False,
    )
    if not work.host_cache_tokens and any(o.problem == NO_ROOM and o.max_context for o in kept):
        console.print(
            "Where there is no room for so many tokens, --host-cache-tokens keeps keys and values in host memory.",
            markup=False,
        )
    if left:
        console.print(f"{left} larger machines are left out: --quantization or --json show all.", markup=False)


def _first_of_each(options: tuple[Option, ...], most: int | None) -> tuple[list[Option], int]:
    """At most so many options of each format, and how many that leaves out."""
    kept: list[Option] = []
    for option in options:
        if most is None or sum(other.format == option.format for other in kept) < most:
            kept.append(option)
    return kept, len(options) - len(kept)


def _fitting_table(options: list[Option], console: Console) -> Table:
    """With as many columns as there is room for: a number that is cut off would pass for another."""
    for fewer in _LEFT_OUT if console.width >= _WIDE else _LEFT_OUT[1:]:
        table = _table(options, fewer)
        if console.measure(table, options=console.options.update_width(_WIDE)).minimum <= console.width:
            break
    return table


def _table(options: list[Option], left_out: frozenset[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    rows = [_cells(option) for option in options]
    names = [name for name in rows[0] if name not in left_out] if rows else []
    for name in names:
        table.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=bool(name))
    for option, row in zip(options, rows, strict=True):
        table.add_row(*(row[name] for name in names), style="dim" if option.problem else None)
    return table


def _cells(option: Option) -> dict[str, str]:
    """By the names of their columns."""
    memory, speed = option.memory, option.speed
    return {
        "machine": f"{option.machine.count}x{option.machine.gpu.name}",
        "format": option.format,
        "placement": option.placement,
        "weights": _gib(memory.weights),
        "cache": _gib(memory.states + memory.kv),
        "other": _gib(memory.activations + memory.overhead),
        "total": _gib(memory.total),
        "of": _gib(memory.available),
        "context": _context(option.max_context),
        "prefill": "-" if speed is None else _rate(speed.prefill_tokens),
        "decode": "-" if speed is None else _rate(speed.decode_tokens),
        "host GiB": _gib(memory.host) if memory.host else "-",
        "": option.problem,
    }


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f}"


def _rate(tokens: float) -> str:
    return f"{tokens:,.0f}" if tokens >= 20 else f"{tokens:.1f}"


def _context(tokens: int) -> str:
    """Rounded down, in the units of `--context`."""
    if tokens >= 2**20:
        return f"{tokens // (2**20 // 10) / 10:,.1f}M"
    return f"{tokens // 2**10}K" if tokens else "-"
