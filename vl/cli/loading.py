"""How a model is loaded, as options: the one place that says which of them a command that loads a model has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, fields
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from vl.cli.console import (
    DeviceOption,
    DTypeOption,
    Quantization,
    printable,
    stderr_console,
    tokens_option,
    usage_errors,
)
from vl.engine.config import EngineConfig

if TYPE_CHECKING:
    from vl.model import MiniMaxVL

Command = Callable[..., None]

Placement = Literal["tensor", "expert", "layers", "context", "auto"]

_SHORT = {"max_batch_size": "--batch-size"}


def read_devices(text: str) -> int | str | list[int | str]:
    """`devices` of `vl.load` as it is written in a command: a number, a word, or a list with commas."""
    parts: list[int | str] = [int(part) if part.isdecimal() else part for part in map(str.strip, text.split(","))]
    return parts[0] if len(parts) == 1 and (isinstance(parts[0], int) or parts[0] == "auto") else parts


def read_spill(text: str) -> int | str:
    """`spill` of `vl.load` as it is written in a command."""
    return int(text) if text.isdecimal() else text


@dataclass(frozen=True)
class Loading:
    """Arguments of `vl.load`. Every field is an option; those of the engine are made from its config's fields."""

    background: Annotated[
        str | None,
        typer.Option(
            help="What transparent images are laid on: white, #rrggbb; by default their transparency is dropped.",
            show_default=False,
        ),
    ] = None
    device: DeviceOption = None
    dtype: DTypeOption = None
    quantization: Annotated[
        Quantization | None,
        typer.Option(help="Quantise the layers' matrices while they are read.", show_default="as in the files"),
    ] = None
    devices: Annotated[
        Any,
        typer.Option(
            parser=read_devices,
            metavar="N|auto|LIST",
            help="Put the model on several GPUs: 2, auto (what vl plan finds fastest), or a list such as 0,1.",
            show_default=False,
        ),
    ] = None
    placement: Annotated[
        Placement | None,
        typer.Option(
            help="How it is cut: a part of every matrix, whole experts, runs of layers, or the tokens of prompts.",
            show_default="tensor",
        ),
    ] = None
    step_timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="When a step of several GPUs counts as hung.", show_default="600"),
    ] = None
    spill: Annotated[
        Any,
        typer.Option(
            parser=read_spill,
            metavar="N|auto",
            help="Keep the experts in host memory, and N of every layer (auto: as many as fit) on the GPU. Slow.",
            show_default=False,
        ),
    ] = None
    engine: EngineConfig = field(default_factory=EngineConfig)

    @classmethod
    def names(cls) -> list[str]:
        """Of the options but the engine's, as they are in Python."""
        return [option.name for option in fields(cls) if option.name != "engine"]

    def arguments(self) -> dict[str, Any]:
        """Of `vl.load`, by name."""
        return {name: getattr(self, name) for name in self.names()} | asdict(self.engine)

    def load(self, model: str, **more: Any) -> MiniMaxVL:
        """`vl.load` with a progress bar on stderr, as large models take minutes; `more` are arguments of it, too."""
        import vl

        console = stderr_console()
        columns = (TextColumn("loading {task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(escape(printable(model)), total=None)

            def show(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            return vl.load(model, progress=show, **self.arguments(), **more)


def loading_options(*, without: Collection[str] = (), **defaults: int) -> Callable[[Command], Command]:
    """Gives a command the options of `Loading`, which reach it as one parameter of this type, `loading`.

    Args:
        without: fields that make no difference to this command.
        defaults: of the engine's settings, this command's, where they are not the engine's.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        of_model, of_engine = _model_options(without), _engine_options(defaults)

        @wraps(command)
        def run(**given: Any) -> None:
            with usage_errors():
                engine = EngineConfig.of({option.name: given.pop(option.name) for option in of_engine})
            loading = Loading(**{option.name: given.pop(option.name) for option in of_model}, engine=engine)
            command(**given, loading=loading)

        kept = [kept for kept in signature.parameters.values() if kept.name != "loading"]
        run.__signature__ = signature.replace(parameters=[*kept, *of_model, *of_engine])  # type: ignore[attr-defined]
        return run

    return decorate


def _model_options(without: Collection[str]) -> list[inspect.Parameter]:
    hints = get_type_hints(Loading, include_extras=True, localns={"MiniMaxVL": Any})
    names = [name for name in Loading.names() if name not in without]
    return [_parameter(name, hints[name], getattr(Loading, name)) for name in names]


def _engine_options(defaults: dict[str, int]) -> list[inspect.Parameter]:
    made = []
    for setting in fields(EngineConfig):
        names = [f"--{setting.name.replace('_', '-')}"]
        if setting.name in _SHORT:
            names.insert(0, _SHORT[setting.name])
        least, help = setting.metadata["least"], setting.metadata["help"]
        how: dict[str, Any] = {"help": help, "rich_help_panel": "Engine"}
        counts_tokens = setting.name.endswith("_tokens")
        option = tokens_option(*names, least=least, **how) if counts_tokens else typer.Option(*names, min=least, **how)
        made.append(_parameter(setting.name, Annotated[int, option], defaults.get(setting.name, setting.default)))
    return made


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
