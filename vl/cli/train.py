"""`vl train`: a model from scratch, from a recipe in TOML."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from vl.cli.console import EXIT_INTERRUPTED, DeviceOption, complain, printable, stdout_console

if TYPE_CHECKING:
    from vl.training import TrainConfig


def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", help="The recipe: model, data, optimizer and run.", dir_okay=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model, checkpoints and logs.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint in --out.")] = False,
    device: DeviceOption = None,
    stop_after: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", min=0.0, help="Save and stop after so long.", show_default=False),
    ] = None,
) -> None:
    """Train a model from scratch on pictures that are rendered while it trains."""
    from vl.training import TrainConfig, train

    recipe = TrainConfig.read(config)
    console = stdout_console()
    console.print(recipe_table(recipe))
    try:
        folder = train(recipe, out, resume=resume, device=device, stop_after=stop_after)
    except KeyboardInterrupt:
        complain("--resume continues from the newest checkpoint", kind="interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    console.print(Text(f"model in {printable(str(folder))}: vl caption --model {printable(str(folder))} SRC..."))


def recipe_table(recipe: TrainConfig) -> Table:
    """What is about to be trained, in a few lines."""
    text, vision, run, optimizer = recipe.text, recipe.vision, recipe.run, recipe.optimizer
    table = Table(show_header=False)
    limit = f" or {run.minutes:g} minutes" if run.minutes else ""
    table.add_row("text", f"{text.num_hidden_layers} layers x {text.hidden_size}, {text.num_local_experts} experts")
    table.add_row("vision", f"{vision.num_hidden_layers} layers x {vision.hidden_size}, {vision.image_size} px tiles")
    table.add_row("run", f"{run.steps:,} steps{limit} of {recipe.data.batch_tokens:,} tokens, {run.dtype}")
    table.add_row("learning rate", f"{optimizer.lr:g} to {optimizer.final_lr:g}")
    return table
