"""`vl bench whole`: the whole model with random weights on this host's GPUs."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from vl.cli.console import DeviceOption, FiguresOption, printable, read_size, stderr_console, stdout_console

if TYPE_CHECKING:
    from vl.bench.whole import Figure


def whole(
    model: Annotated[str, typer.Option(help="What vl plan takes: its config counts, no weights are read.")] = (
        "MiniMax-VL-01"
    ),
    layers: Annotated[int | None, typer.Option(min=1, help="So many of its layers.", show_default="all")] = None,
    quantization: Annotated[str, typer.Option(help="nf4, int8, fp8, or bf16 for none.")] = "nf4",
    devices: Annotated[int | None, typer.Option(min=1, help="How many GPUs.", show_default="all of this host")] = None,
    placement: Annotated[
        str | None, typer.Option(help="tensor, expert, layers or context.", show_default="tensor")
    ] = None,
    prompt: Annotated[list[int] | None, typer.Option(help="Tokens to read.", show_default="8192, 32768")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Sequences to write.", show_default="1, 8, 64")] = None,
    prefill_tokens: Annotated[int, typer.Option(min=1, help="Tokens read at a time.")] = 16384,
    requests: Annotated[
        int | None,
        typer.Option(min=2, help="Also so many questions at once, each about another image.", show_default=False),
    ] = None,
    output_tokens: Annotated[int, typer.Option(min=2, help="Of each of these answers.")] = 128,
    image: Annotated[str, typer.Option(metavar="WxH", help="Size of the images that are asked about.")] = "1344x1008",
    json: FiguresOption = None,
    device: DeviceOption = None,
) -> None:
    """The whole model, its weights random: load, memory, reading and writing, beside floors and vl plan."""
    import torch

    from vl.bench.crowd import Crowd
    from vl.bench.whole import bench_whole
    from vl.files import write_file
    from vl.plan.models import find_config
    from vl.quantization import FORMATS

    if quantization not in (*FORMATS, "bf16"):
        choices = ", ".join((*FORMATS, "bf16"))
        raise typer.BadParameter(f"{printable(quantization)}: choose from {choices}", param_hint="--quantization")
    if quantization == "bf16" and (stored := find_config(model).quantization):
        raise typer.BadParameter(f"the config of {printable(model)} says {stored}", param_hint="--quantization")
    size = read_size(image)
    figures: list[Figure] = []
    console = stderr_console()
    for figure in bench_whole(
        model,
        layers=layers,
        quantization=None if quantization == "bf16" else quantization,
        devices=devices or max(1, torch.cuda.device_count()),
        placement=placement,
        device=device,
        prompts=prompt or (8192, 32768),
        batches=batch or (1, 8, 64),
        prefill_tokens=prefill_tokens,
        image=size,
        crowd=None if requests is None else Crowd(requests, size, output_tokens),
    ):
        figures.append(figure)
        console.print(Text(f"{printable(figure.what)}: {figure.value:,.1f} {figure.unit} {figure.note}"))
        if json is not None:
            write_file(json, jsonlib.dumps([asdict(each) for each in figures], indent=2) + "\n")
    stdout_console().print(whole_table(figures))


def whole_table(figures: list[Figure]) -> Table:
    """Measured, beside what memory's bandwidth allows and what `vl plan` predicts."""
    table = Table("what", "measured", "", "floor", "vl plan", "")
    for column in table.columns[1:5]:
        column.justify = "right"
    for figure in figures:
        known = ("" if value is None else f"{value:,.1f}" for value in (figure.floor, figure.planned))
        table.add_row(figure.what, f"{figure.value:,.1f}", figure.unit, *known, figure.note)
    return table
