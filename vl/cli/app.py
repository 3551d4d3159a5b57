"""The `vl` command line: its commands, plugins, and what becomes of errors.

Exit codes, for scripts:

    0    all good
    1    some images failed; their rows say why
    2    usage error: unknown option, missing argument, no image found
    3    the model, a configuration or the output cannot be used
    70   unexpected error: a bug; VL_TRACEBACK=1 shows where
    130  interrupted (Ctrl-C)
    141  whoever read the output has gone, as in vl ... | head -1

Other distributions add commands through the entry-point group `vl.commands`: a function that is given the Typer app.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vl import __version__
from vl.cli import bench, caption, chat, convert, evaluate, niah, plan, read, report, serve, train
from vl.cli.console import EXIT_INTERRUPTED, EXIT_NO_READER, EXIT_UNEXPECTED, EXIT_UNUSABLE, complain

EPILOG = (
    "Exit codes: 0 all good · 1 some images failed · 2 usage error · 3 model, configuration or output cannot be used · "
    "70 unexpected error (VL_TRACEBACK=1 shows where) · 130 interrupted · 141 nobody reads the output"
)


class _Commands(TyperGroup):
    """Commands by their names, of which some have two words."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = " ".join(args[:2])
        return super().resolve_command(ctx, [name, *args[2:]] if name in self.commands else args)


app = typer.Typer(
    name="vl",
    cls=_Commands,
    help="Captions, chat and training with models of the MiniMax-VL-01 family.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("caption", epilog=EPILOG)(caption.caption)
app.command("report", epilog=EPILOG)(report.report)
app.command("chat", epilog=EPILOG)(chat.chat)
app.command("read", epilog=EPILOG)(read.read)
app.command("ask", epilog=EPILOG)(read.ask)
app.command("serve", epilog=EPILOG)(serve.serve)
app.command("train", epilog=EPILOG)(train.train)
app.command("eval", epilog=EPILOG)(evaluate.evaluate)
app.command("eval niah", epilog=EPILOG)(niah.niah)
app.command("plan", epilog=EPILOG)(plan.plan)
app.command("convert", epilog=EPILOG)(convert.convert)
app.add_typer(bench.app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vl {__version__}")
        raise typer.Exit


@app.callback()
def _vl(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def load_plugins() -> None:
    """Let the entry points of `vl.commands` add theirs; a broken one costs its commands, not the others."""
    for plugin in entry_points(group="vl.commands"):
        try:
            plugin.load()(app)
        except Exception as error:
            complain(f"the command {plugin.name!r} is missing: {type(error).__name__}: {error}", kind="warning")


def run(args: Sequence[str] | None = None) -> int:
    """Run one command line (by default the process's own) and return its exit code."""
    try:
        app(args=args, prog_name="vl")
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # which Typer ends with 1
            return EXIT_NO_READER
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        return explain(error)
    return 0


def explain(error: Exception) -> int:
    """One message for an error that ended a command; returns the exit code."""
    if os.environ.get("VL_TRACEBACK", "0") not in ("", "0"):
        traceback.print_exception(error)
    errors = sys.modules.get("vl.errors")  # not imported: what was never loaded was never raised
    if errors is not None and isinstance(error, errors.Error):
        complain(str(error))
        return EXIT_UNUSABLE
    if isinstance(error, OSError):  # a full disk, a file that may not be read
        complain(f"{error.filename or 'writing the output'}: {error.strerror or error}")
        if error.filename is None:
            _flush()  # an output that cannot be written is told of once
        return EXIT_UNUSABLE
    if isinstance(error, MemoryError):
        complain("there is not enough memory: try a smaller --batch-size or --max-new-tokens")
        return EXIT_UNUSABLE
    complain(f"unexpected {type(error).__name__}: {error}. Set VL_TRACEBACK=1 to see where it comes from")
    return EXIT_UNEXPECTED


def main() -> None:
    """The console script."""
    for stream, how in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        # A caption or file name that is not valid text here must not end the command.
        getattr(stream, "reconfigure", lambda **_: None)(errors=how)
    warnings.showwarning = _warn
    load_plugins()
    code = _flushed(run())
    if code in (EXIT_INTERRUPTED, EXIT_NO_READER) and any(
        t.name.startswith("vl-images") for t in threading.enumerate()
    ):
        # Threads that read images may be in the middle of a download, and a normal exit would wait for them.
        os._exit(code)
    sys.exit(code)


def _warn(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """A warning as a user reads it: what it says, without the line of the code that says it."""
    kind = "warning" if category is UserWarning else f"warning ({category.__name__})"
    complain(str(message), kind=kind)


def _flushed(code: int) -> int:
    """The exit code once the output is written: a disk may be full, a reader may have gone."""
    error = _flush()
    if error is None:
        return code
    return code or EXIT_NO_READER if isinstance(error, BrokenPipeError) else explain(error)


def _flush() -> OSError | None:
    """Write what is left of the output. If it cannot be, it is dropped, and why is returned."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would try again at its exit, and then complain in words of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None
