"""`vl chat`: ask about images, once or in a dialogue."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from vl.cli.console import (
    EXIT_SOME_FAILED,
    ModelOption,
    check_options,
    check_question,
    complain,
    printable,
    stderr_console,
    stdin_is_terminal,
)
from vl.cli.loading import Loading, loading_options
from vl.cli.progress import ReadingProgress
from vl.cli.sampling import sampling_options

if TYPE_CHECKING:
    from PIL import Image

    from preprocessing.alpha import Background
    from vl.model import MiniMaxVL

HELP = "/image PATH adds an image, /reset starts again, /quit (or Ctrl-D) ends"


@loading_options()
@sampling_options
def chat(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE]... [QUESTION]", help="Images, then the question.", show_default=False),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option("--question", "-q", help="The question; every argument is an image then.", show_default=False),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.", show_default=False)] = None,
    model: ModelOption = "nano",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object: text, usage, timings.")] = False,
    *,
    sampling: dict[str, Any],
    loading: Loading,
) -> None:
    """Ask about images; without a question, a dialogue.

    The last argument is the question unless it is an image: an existing file, a URL, or a name like photo.jpg. One
    argument alone is a question only if it has spaces or ends with a question mark.
    """
    images, asked = split_arguments(arguments or [], question)
    check_question(asked, images)
    if json and asked is None:
        raise typer.BadParameter("--json needs a question")
    check_options(sampling, loading.background)
    # Images first: a wrong path should not wait for the model.
    opened = [open_image(name, loading.background) for name in images]
    loaded = loading.load(model)
    dialogue = Dialogue(loaded, opened, system, sampling)
    if asked is None:
        if interact(dialogue):
            raise typer.Exit(EXIT_SOME_FAILED)
    elif json:
        print(jsonlib.dumps(dialogue.report(asked), ensure_ascii=False))
    else:
        show(dialogue.ask(asked))


def split_arguments(arguments: list[str], question: str | None) -> tuple[list[str], str | None]:
    """Which arguments are images and which is the question, as `chat` documents it."""
    if question is not None or not arguments:
        return arguments, question
    *before, last = arguments
    if before:
        is_question = not is_image(last)
    else:
        is_question = not is_image(last) and (last.rstrip().endswith("?") or len(last.split()) > 1)
    return (before, last) if is_question else (arguments, None)


def is_image(argument: str) -> bool:
    """Whether an argument means an image: a file that exists, a URL, or one word with an image suffix."""
    from preprocessing import has_image_suffix
    from preprocessing.fetch import is_url

    if os.path.isfile(argument) or is_url(argument):
        return True
    return has_image_suffix(argument) and len(argument.split()) == 1


def open_image(name: str, background: Background = None) -> Image.Image:
    """Read an image once for all turns.

    Raises:
        ImageError: if it cannot be read.
    """
    from preprocessing import load_image

    return load_image(name, background=background)


class Dialogue:
    """The messages so far and the images that wait for the next question."""

    def __init__(
        self, model: MiniMaxVL, images: list[Image.Image], system: str | None, sampling: dict[str, Any]
    ) -> None:
        self._model = model
        self.images = images
        self._system = system
        self._sampling = sampling
        self.reset()

    def reset(self) -> None:
        """Back to the start: the system message and the first images."""
        self._messages: list[dict[str, Any]] = [_message("system", self._system)] if self._system else []
        self._waiting = list(self.images)

    def open(self, name: str) -> Image.Image:
        """`open_image` with the model's background."""
        return open_image(name, self._model.processor.background)

    def add(self, image: Image.Image) -> None:
        """Show `image` with the next question."""
        self._waiting.append(image)

    def describe(self, image: Image.Image) -> str:
        """How the model will see an image."""
        patcher = self._model.processor.patcher
        if patcher is None:
            return f"{image.width} x {image.height}"
        grid = patcher.grid(image.width, image.height)
        width, height = grid.resolution
        return f"{image.width} x {image.height}, at {width} x {height}: {grid.tiles} tiles, {grid.tokens:,} tokens"

    def ask(self, question: str) -> Generator[str, None, None]:
        """The answer, piece by piece. The turn is remembered once any of the answer was read, even if cut short."""
        turn = _message("user", question, self._waiting)
        pieces: list[str] = []
        try:
            with ReadingProgress(stderr_console()) as progress:
                for piece in self._model.stream([*self._messages, turn], progress=progress, **self._sampling):
                    pieces.append(piece)
                    yield piece
        finally:
            if pieces:
                self._messages += [turn, _message("assistant", "".join(pieces))]
                self._waiting = []

    def report(self, question: str) -> dict[str, Any]:
        """The answer with its token counts and timings."""
        turn = _message("user", question, self._waiting)
        with ReadingProgress(stderr_console()) as progress:
            generation = self._model.generate([[*self._messages, turn]], progress=progress, **self._sampling)[0]
        return {
            "text": generation.text,
            "finish_reason": generation.finish_reason,
            "usage": dataclasses.asdict(generation.usage),
            "timings": dataclasses.asdict(generation.timings),
            "model": self._model.name,
        }


def _message(role: str, text: str, images: list[Image.Image] | None = None) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images or []]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def show(pieces: Iterator[str]) -> None:
    """Write an answer as it comes."""
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def interact(dialogue: Dialogue) -> int:
    """Questions from the terminal, or from a pipe, until they end; returns how many could not be answered.

    Ctrl-C stops an answer; at the prompt it leaves.
    """
    from vl.errors import Error

    console = stderr_console()
    if stdin_is_terminal():
        import readline  # noqa: F401  (line editing and history for input())

        for image in dialogue.images:
            console.print(Text(dialogue.describe(image), style="dim"))
        console.print(Text(HELP, style="dim"))
    failures = 0
    while (line := _read_line()) is not None:
        try:
            if line.startswith("/"):
                if not _obey(dialogue, line):
                    break
            elif line:
                with closing(dialogue.ask(line)) as pieces:
                    _show_interruptible(pieces)
        except Error as error:
            failures += 1
            complain(str(error))
    return failures


def _show_interruptible(pieces: Iterator[str]) -> None:
    try:
        show(pieces)
    except KeyboardInterrupt:
        print()


def _read_line() -> str | None:
    """The next line without surrounding space; None at the end of the input."""
    try:
        return input("> " if stdin_is_terminal() else "").strip()
    except EOFError:
        return None


def _obey(dialogue: Dialogue, line: str) -> bool:
    """Carry out a `/command`; returns False if it ends the dialogue."""
    command, _, argument = line.partition(" ")
    argument = argument.strip()
    if command in ("/quit", "/exit"):
        return False
    if command == "/reset":
        dialogue.reset()
    elif command == "/image" and argument:
        image = dialogue.open(argument)
        dialogue.add(image)
        stderr_console().print(Text(f"{printable(argument)}: {dialogue.describe(image)}", style="dim"))
    else:
        stderr_console().print(Text(HELP))
    return True
