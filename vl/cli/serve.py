"""`vl serve`: the model for many callers, over HTTP in the words of OpenAI's API."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from vl.cli.console import (
    check_layers,
    check_options,
    importing,
    stderr_console,
    usage_errors,
)
from vl.cli.loading import Loading, loading_options
from vl.heaps import bound_arenas

if TYPE_CHECKING:
    from vl.model import MiniMaxVL

KEYS = "VL_API_KEYS"
_LIMITS = "Limits"


@loading_options()
def serve(
    model: Annotated[
        str, typer.Argument(help="nano (embedded), a folder in the released layout, or a hub id.")
    ] = "nano",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[
        list[str] | None,
        typer.Option(help="What requests call the model; several times for several.", show_default="its own"),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help=f"A key that requests may bring; several times for several. Also {KEYS}, with commas."),
    ] = None,
    allow_image_hosts: Annotated[
        str | None,
        typer.Option(metavar="HOST,...", help="Fetch images whose URL names one of these hosts.", show_default=False),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Let pages of this origin, such as https://app.example.com, ask from a browser; several times for "
            "several, * for all.",
            show_default=False,
        ),
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(min=0, help="Requests beyond --batch-size; more get status 429.", rich_help_panel=_LIMITS)
    ] = 128,
    max_body: Annotated[int, typer.Option(min=1, help="MiB of a request.", rich_help_panel=_LIMITS)] = 64,
    max_images: Annotated[int, typer.Option(min=0, help="Images of a request.", rich_help_panel=_LIMITS)] = 16,
    max_megapixels: Annotated[
        int, typer.Option(min=1, max=178, help="Millions of pixels of an image.", rich_help_panel=_LIMITS)
    ] = 64,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Tokens of a prompt and its answer.",
            show_default="what the cache holds",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.", rich_help_panel=_LIMITS)] = 4096,
    max_answers: Annotated[int, typer.Option(min=1, help="Answers to one request (n).", rich_help_panel=_LIMITS)] = 8,
    grace: Annotated[
        float, typer.Option(min=1, help="Seconds that what runs has to finish after SIGTERM.", rich_help_panel=_LIMITS)
    ] = 300.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No line for each request.")] = False,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="To measure with: MODEL is what vl plan takes, its config counts.")
    ] = False,
    layers: Annotated[
        int | None, typer.Option(min=1, help="So many of its layers, with --random-weights.", show_default="all")
    ] = None,
    *,
    loading: Loading,
) -> None:
    """Serve a model over HTTP as OpenAI's API does: chat with images, completions, tokens, metrics."""
    check_options({}, loading.background)
    check_layers(layers, random_weights)
    if random_weights and loading.spill is not None:
        raise typer.BadParameter("not with --random-weights, which are made on the GPU", param_hint="--spill")
    try:
        with importing():
            from vl.server.config import MIB, ServerConfig
            from vl.server.running import Server, bind
            from vl.server.running import serve as run
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"{error.name} is not installed: pip install 'minimax-vl[serve]'") from None
    with usage_errors():
        config = ServerConfig(
            names=tuple(name or [os.path.basename(os.path.abspath(model))]),
            api_keys=_keys(api_key),
            max_waiting=max_waiting,
            max_body=max_body * MIB,
            max_images=max_images,
            max_pixels=max_megapixels * 10**6,
            max_tokens=max_tokens or loading.engine.cache_tokens + loading.engine.host_cache_tokens,
            max_new_tokens=max_new_tokens,
            max_answers=max_answers,
            image_hosts=_split(allow_image_hosts),
            origins=tuple(allow_origin or ()),
        )
    bound_arenas()
    bound = bind(host, port)  # before the model: a port that is taken should not wait for it
    loaded = _random(model, layers, loading) if random_weights else loading.load(model, warm_up=True)
    where = f"[{host}]" if ":" in host else host
    console = stderr_console()
    try:
        run(
            Server(loaded, config),
            bound,
            grace=grace,
            log_requests=not quiet,
            ready=lambda: console.print(
                f"{config.names[0]} is served at http://{where}:{bound.getsockname()[1]}/v1 (Ctrl-C ends it)",
                soft_wrap=True,
                markup=False,
            ),
        )
    finally:
        loaded.close()


def _random(model: str, layers: int | None, loading: Loading) -> MiniMaxVL:
    from vl.bench.made import random_whole

    how = {name: getattr(loading, name) for name in loading.names() if name != "spill"}
    loaded, _ = random_whole(model, layers=layers, engine=loading.engine, spelling=True, **how)
    loaded.engine.warm_up()
    return loaded


def _keys(given: list[str] | None) -> tuple[str, ...]:
    """Keys of the command line, where other users of the machine may see them, and of the environment."""
    said = os.environ.get(KEYS)
    here = _split(said)
    if said is not None and not here:  # of a secret that is missing: nobody meant to let everybody in
        raise typer.BadParameter(f"{KEYS} is set and holds no key: give it some, with commas, or unset it")
    keys = (*(given or ()), *here)
    if not all(key.strip() for key in keys):
        raise typer.BadParameter("an API key is empty", param_hint="--api-key")
    return keys


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
