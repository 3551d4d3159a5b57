"""How answers are sampled, as options: the one place that says which of them a command that asks a model has."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

Command = Callable[..., None]


def _options(
    *,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens generated at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most likely token; more varies more.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample from the most likely tokens of this sum of probabilities.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from this many of the most likely tokens; 0 from all.")] = 0,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes sampling repeatable.", show_default=False)] = None,
) -> None:
    """The options themselves, by the names that `vl.SamplingParams` has."""


def sampling_options(command: Command) -> Command:
    """Gives a command these options, which reach it as one parameter, the dictionary `sampling`."""
    signature = inspect.signature(command, eval_str=True)
    options = inspect.signature(_options, eval_str=True).parameters

    @wraps(command)
    def run(**given: Any) -> None:
        command(sampling={name: given.pop(name) for name in options}, **given)

    kept = [kept for kept in signature.parameters.values() if kept.name != "sampling"]
    run.__signature__ = signature.replace(parameters=[*kept, *options.values()])  # type: ignore[attr-defined]
    return run
