"""Where `vl caption` has its engines: here, in processes side by side, on Ray, or behind a URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vl.cli.loading import Loading

if TYPE_CHECKING:
    from vl.jobs import Elsewhere


def read_engines(text: str) -> int | str:
    """`2` or `auto`. Raises BadParameter."""
    if text != "auto" and not (text.isdecimal() and int(text)):
        raise typer.BadParameter(f"{text!r} is neither a number from 1 nor auto")
    return text if text == "auto" else int(text)


_PANEL = "Where the engines are"
EngineOption = Annotated[
    Literal["local", "ray"],
    typer.Option(help="ray: a pool of engines on the cluster that RAY_ADDRESS names, or here.", rich_help_panel=_PANEL),
]
EnginesOption = Annotated[
    Any,
    typer.Option(
        parser=read_engines,
        metavar="N|auto",
        help="Engines side by side, each with its own model and --devices: processes here, or actors of Ray. "
        "auto: one for each GPU.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--engine-url",
        metavar="URL",
        help="Ask a running server that speaks OpenAI's chat completions, --batch-size requests at a time.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar=["VL_API_KEY", "OPENAI_API_KEY"],
        help="Of that server.",
        show_default=False,
        show_envvar=True,
        rich_help_panel=_PANEL,
    ),
]
PatienceOption = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="SECONDS",
        help="How long to try that server again when it is busy, away or being started.",
        rich_help_panel=_PANEL,
    ),
]

_OF_SEVERAL = ("engine", "engines")
_AT_ONCE = "max_batch_size"  # which a client has, too


@dataclass(frozen=True)
class Where:
    """The options above.

    Attributes:
        named: whether the model was given by name.
    """

    engine: Literal["local", "ray"]
    engines: int | str | None
    url: str | None
    key: str | None
    patience: float
    named: bool

    @classmethod
    def of(cls, context: typer.Context, patience: float, **options: Any) -> Where:
        """Raises BadParameter for options that do not go together: none is passed over."""

        def given(name: str) -> bool:
            source = context.get_parameter_source(name)
            return source is not None and source.name == "COMMANDLINE"

        if options["url"] is not None:
            if wrong := [name for name in (*Loading().arguments(), *_OF_SEVERAL) if given(name) and name != _AT_ONCE]:
                raise typer.BadParameter(f"{_shown(wrong)} cannot be had of a server: leave it out, or --engine-url")
        elif wrong := [name for name in ("api_key", "patience") if given(name)]:
            raise typer.BadParameter(f"{_shown(wrong)} goes with --engine-url")
        if options["engine"] == "ray" and given("device"):
            raise typer.BadParameter("--device does not go with --engine ray: its workers have the devices")
        return cls(**options, patience=patience, named=given("model"))

    @contextmanager
    def opened(self, model: str, loading: Loading) -> Iterator[Elsewhere | None]:
        """What captions, if that is not a model in this process."""
        how = {name: value for name, value in loading.arguments().items() if name not in ("device", "devices")}
        if self.url is not None:
            from vl.jobs.served import Served

            with Served(self.url, model if self.named else None, key=self.key, patience=self.patience) as served:
                yield served
        elif self.engine == "ray":
            from vl.jobs.ray import RayEngines

            engines = None if isinstance(self.engines, str) else self.engines
            if not isinstance(loading.devices, int | None):
                raise typer.BadParameter("--devices of --engine ray is how many GPUs each engine has: a number")
            with RayEngines(model, engines, devices=loading.devices, **how) as pool:
                yield pool
        elif self.engines is not None:
            from vl.jobs.engines import Engines

            yield Engines(model, self.engines, device=loading.device, devices=loading.devices, **how)
        else:
            yield None


def _shown(names: list[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)
