"""`vl train`: a model from scratch or from a checkpoint, by a recipe in TOML."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from vl.cli.console import (
    EXIT_INTERRUPTED,
    DeviceOption,
    complain,
    printable,
    read_path,
    stdout_console,
)
from vl.cli.interrupts import second_interrupt_ends
from vl.cli.torchrun import told_once

if TYPE_CHECKING:
    from vl.training import TrainConfig


def train(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG.toml|NAME",
            help="The recipe: a file, or the name of one that comes with the package: "
            "align (the projector alone), tune (everything), lora (adapters), nano, reading, skills, answers, tiny, "
            "recall, recall_softmax.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder for the model, checkpoints and logs.", parser=read_path, metavar="PATH"
        ),
    ],
    init: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Start from this model: nano, a folder or a hub id.", show_default="the recipe's"
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILES",
            help="JSONL of messages or WebDataset shards to learn from; may be repeated, and hold * and ?.",
            show_default="the recipe's",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run that --out holds.")] = False,
    device: DeviceOption = None,
    stop_after: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", min=0.0, help="Save and stop after so long.", show_default=False),
    ] = None,
) -> None:
    """Train a model: from scratch on pictures or text made on the way, or from a checkpoint on data of your own.

    Under torchrun, the parameters are sharded over its processes: torchrun --nproc-per-node 8 -m vl.cli train ...
    """
    with told_once(), second_interrupt_ends():
        _train(config, out, init, data, resume, overwrite, device, stop_after)


def _train(
    config: str,
    out: Path,
    init: str | None,
    data: list[str] | None,
    resume: bool,
    overwrite: bool,
    device: str | None,
    stop_after: float | None,
) -> None:
    from vl.training import TrainConfig, train

    first = os.environ.get("RANK", "0") == "0"
    changes: dict[str, dict[str, Any]] = {
        "run": {} if init is None else {"init": init},
        "data": {"files": data} if data else {},
    }
    recipe = TrainConfig.of_file(config, {table: values for table, values in changes.items() if values})
    console = stdout_console()
    if first:
        console.print(recipe_table(recipe))
    try:
        folder = train(recipe, out, resume=resume, overwrite=overwrite, device=device, stop_after=stop_after)
    except KeyboardInterrupt:
        if first:
            complain("--resume continues from the newest checkpoint", kind="interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if first:
        console.print(result_line(folder))


def result_line(folder: Path) -> Text:
    """Where the result is and how to use it."""
    from vl.config import read_config

    name = printable(str(folder))
    if (folder / "adapter_config.json").exists():
        return Text(f"adapters in {name}: vl.training.load_adapter(vl.load(MODEL), {name!r})")
    sees = read_config(folder).vision is not None
    return Text(f"model in {name}: " + (f"vl caption --model {name} SRC..." if sees else f"vl chat --model {name}"))


def recipe_table(recipe: TrainConfig) -> Table:
    """What is about to be trained, in a few lines."""
    text, vision, data, run, optimizer = recipe.text, recipe.vision, recipe.data, recipe.run, recipe.optimizer
    table = Table(show_header=False)
    if run.init:
        table.add_row("start", Text(printable(run.init)))
    if text:
        table.add_row("text", f"{text.num_hidden_layers} layers x {text.hidden_size}, {text.num_local_experts} experts")
    if vision:
        table.add_row(
            "vision", f"{vision.num_hidden_layers} layers x {vision.hidden_size}, {vision.image_size} px tiles"
        )
    table.add_row("learns", f"adapters of rank {recipe.lora.rank}" if recipe.lora else Text(", ".join(run.train)))
    table.add_row("data", Text(printable(", ".join(data.files) or f"made by {data.source}")))
    passes = f" or {run.epochs} x the data" if run.epochs else ""
    limit = f" or {run.minutes:g} minutes" if run.minutes else ""
    batches = f"{run.accumulate} x " if run.accumulate > 1 else ""
    table.add_row("run", f"{run.steps:,} steps{passes}{limit} of {batches}{data.batch_tokens:,} tokens, {run.dtype}")
    table.add_row("learning rate", f"{optimizer.lr:g} to {optimizer.final_lr:g}, {optimizer.schedule}")
    return table
