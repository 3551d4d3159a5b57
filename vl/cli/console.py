"""What commands share: consoles, exit codes and options."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from vl.engine import SamplingParams

EXIT_SOME_FAILED = 1
EXIT_UNUSABLE = 3
EXIT_UNEXPECTED = 70
EXIT_INTERRUPTED = 130
EXIT_NO_READER = 141

_PIPED_WIDTH = 160
_UNITS = {"": 1, "k": 2**10, "m": 2**20}

DType = Literal["bfloat16", "float16", "float32", "float64"]
Quantization = Literal["int8", "fp8", "nf4"]


def read_tokens(text: str | int, least: int = 1) -> int:
    """`32768`, `32k`, `1M`: K is 1024 tokens and M 1024 K; an option's default as it is. Raises BadParameter."""
    match = re.fullmatch(r"(\d{1,15})([kKmM]?)", str(text).strip())
    if not match or int(match[1]) < least:
        raise typer.BadParameter(f"{text!r} is not a number of tokens: write 32768, 32K or 1M")
    return int(match[1]) * _UNITS[match[2].lower()]


def tokens_option(*names: str, least: int = 1, **more: Any) -> Any:
    """An option that is a number of tokens, as `read_tokens` reads it."""

    def tokens(text: str) -> int:  # older versions of Typer want a name
        return read_tokens(text, least)

    return typer.Option(*names, parser=tokens, metavar="TOKENS", **more)


def read_size(text: str) -> tuple[int, int]:
    """`1344x1008` as width and height. Raises BadParameter."""
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text.strip())
    if not match or not int(match[1]) * int(match[2]):
        raise typer.BadParameter(f"{printable(text)!r} is no size: write 1344x1008", param_hint="--image")
    return int(match[1]), int(match[2])


def read_path(text: str) -> Path:
    """A path as it is written in a command. Raises BadParameter for an empty one: a `Path` of that is this folder."""
    if not text:
        raise typer.BadParameter("a path is empty: name a file or folder, or . for the current one")
    return Path(text)


ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="nano (embedded), a folder in the released layout, or a hub id.")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps; by default the first GPU, else the CPU.", show_default=False)
]
DTypeOption = Annotated[
    DType | None,
    typer.Option(help="How weights are held; by default bfloat16 on a GPU, float32 on a CPU.", show_default=False),
]
# What measurements have.
FiguresOption = Annotated[
    Path | None,
    typer.Option(
        "--json", help="Also write the figures to this file.", show_default=False, parser=read_path, metavar="PATH"
    ),
]
ScaleOption = Annotated[
    Literal["full", "small"] | None,
    typer.Option(help="Released sizes or scaled ones; by default what the device holds.", show_default=False),
]


def stdout_console() -> Console:
    """For results. Into a pipe, tables get room instead of a terminal's width."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        return Console(highlight=False, width=_PIPED_WIDTH)
    return console


def stderr_console() -> Console:
    """For progress and messages."""
    return Console(stderr=True, highlight=False)


def complain(message: str, kind: str = "error") -> None:
    """Print `error: message` on stderr."""
    style = "bold red" if kind == "error" else "yellow"
    stderr_console().print(Text.assemble((f"{kind}: ", style), printable(message)), soft_wrap=True)


def printable(text: str) -> str:
    """`text` with control characters and undecodable bytes escaped, so that a name cannot drive the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def plural(count: int, noun: str) -> str:
    """`1 error`, `2,000 errors`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def check_folders(*paths: Path | None) -> None:
    """Raises BadParameter for a file that could not be written after minutes of work."""
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise typer.BadParameter(f"there is no folder {printable(str(path.parent))} to write {path.name} into")


def check_charts(plot: Path | None, option: str = "--plot") -> None:
    """Raises BadParameter for a chart that could not be drawn after minutes of work."""
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise typer.BadParameter("charts need matplotlib: pip install matplotlib", param_hint=option)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """The first imports of torch and what stands on it, without work for the garbage collector now or at the end.

    It would look through half a million objects again and again for garbage, and through all of them once more when
    the process ends. Modules live as long as the process, so they are frozen: counted out for good. That is for a
    program to say, not for a library, so in a process that has torch already nothing is changed.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """What a `vl.Error` of this block says is said of the command line: exit code 2, before a model is loaded."""
    from vl.errors import Error

    try:
        yield
    except Error as error:
        raise typer.BadParameter(printable(str(error))) from None


def check_options(sampling: dict[str, Any], background: str | None) -> SamplingParams:
    """The checked options that all commands share. Raises BadParameter."""
    with importing():
        from preprocessing.alpha import read_background
        from vl.engine import SamplingParams
    with usage_errors():
        read_background(background)
        return SamplingParams.of(sampling)


def check_question(question: str | None, images: Sequence[str] | None) -> None:
    """Raises BadParameter for a question without text or images; None is no question yet."""
    if question is not None and not question.strip() and not images:
        raise typer.BadParameter("the question is empty: say what to ask, or name an image")


def check_layers(layers: int | None, random_weights: bool) -> None:
    """Raises BadParameter for layers of a model that has a checkpoint."""
    if layers is not None and not random_weights:
        raise typer.BadParameter("of a model with --random-weights; another is served whole", param_hint="--layers")


def stdin_is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()
