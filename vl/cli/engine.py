"""The engine's settings as options: of every command that loads a model, made from the fields of `EngineConfig`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Annotated, Any

import typer

from vl.cli.console import usage_errors
from vl.engine.config import EngineConfig

Command = Callable[..., None]

_SHORT = {"max_batch_size": "--batch-size"}


def engine_options(parameter: str = "engine", /, **defaults: int) -> Callable[[Command], Command]:
    """Gives a command the engine's options, which reach it as one parameter, an `EngineConfig`.

    Args:
        parameter: its name.
        defaults: this command's, where they are not the engine's.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        options = _options(defaults)

        @wraps(command)
        def run(**given: Any) -> None:
            with usage_errors():
                engine = EngineConfig.of({option.name: given.pop(option.name) for option in options})
            command(**given, **{parameter: engine})

        kept = [kept for kept in signature.parameters.values() if kept.name != parameter]
        run.__signature__ = signature.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
        return run

    return decorate


def _options(defaults: dict[str, int]) -> list[inspect.Parameter]:
    made = []
    for setting in fields(EngineConfig):
        names = [f"--{setting.name.replace('_', '-')}"]
        if setting.name in _SHORT:
            names.insert(0, _SHORT[setting.name])
        least, help = setting.metadata["least"], setting.metadata["help"]
        option = typer.Option(*names, min=least, help=help, rich_help_panel="Engine")
        default = defaults.get(setting.name, setting.default)
        kind = inspect.Parameter.KEYWORD_ONLY
        made.append(inspect.Parameter(setting.name, kind, default=default, annotation=Annotated[int, option]))
    return made
