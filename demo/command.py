"""`vl demo`: the page on this machine. Registered through the entry-point group `vl.commands`."""

from __future__ import annotations

from typing import Annotated

import typer

from vl.cli.console import ModelOption, check_options
from vl.cli.loading import Loading, loading_options


def register(app: typer.Typer) -> None:
    """Add the command; called by the `vl` command line."""
    app.command("demo")(demo)


@loading_options()
def demo(
    model: ModelOption = "nano",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="By default 7860, or the next free one.", show_default=False),
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Also make a public link through Gradio's servers.")] = False,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the page in a browser.")] = False,
    *,
    loading: Loading,
) -> None:
    """Open a page to ask about images: answers stream, and the tiles that the model sees are drawn."""
    from demo.ports import free_port

    check_options({}, loading.background)
    chosen = free_port(host, port)  # before the model: a taken port should not wait for it

    from demo.app import build
    from demo.serving import launch

    page = build(loading.load(model))
    addresses = launch(page, host=host, port=chosen, share=share, browser=not no_browser)
    typer.echo(f"The page is at {' and '.join(addresses)} (Ctrl-C ends it)")
    page.block_thread()
