"""`vl read` and `vl ask`: a document is read once, and asked about any number of times."""

from __future__ import annotations

import dataclasses
import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from vl.cli.chat import open_image, show
from vl.cli.console import (
    ModelOption,
    check_options,
    check_question,
    printable,
    read_path,
    stderr_console,
)
from vl.cli.loading import Loading, loading_options
from vl.cli.progress import ReadingProgress
from vl.cli.sampling import sampling_options

if TYPE_CHECKING:
    from vl.engine.session import Session
    from vl.engine.session_file import Saved

SAVE_EVERY, PAGE_SIDE = 131072, 1344  # those of `vl.MiniMaxVL.read`, which would import torch

SessionArgument = Annotated[
    Path, typer.Argument(metavar="SESSION", help="The folder that vl read wrote.", parser=read_path)
]


@loading_options()
def read(
    documents: Annotated[list[str], typer.Argument(metavar="DOC...", help="Text files, PDFs and images.")],
    session: Annotated[
        Path,
        typer.Option("--session", "-s", help="The folder to save what was read in.", parser=read_path, metavar="PATH"),
    ],
    model: ModelOption = "nano",
    page_side: Annotated[int, typer.Option(min=1, help="Pixels of the longer side of a PDF's pages.")] = PAGE_SIDE,
    save_every: Annotated[int, typer.Option(min=1, help="Tokens between two saves on the way.")] = SAVE_EVERY,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a session of something else.")] = False,
    *,
    loading: Loading,
) -> None:
    """Read documents once, and save what was read: `vl ask` has it again in seconds.

    It is saved on the way, too. After an interruption, the same command goes on from there.
    """
    from vl.documents import read_documents
    from vl.engine.session_file import make_folder

    check_options({}, loading.background)
    messages = read_documents(documents, page_side=page_side)  # a wrong path should not wait for the model
    make_folder(session)  # nor should one that cannot be written
    loaded = loading.load(model)
    with ReadingProgress(stderr_console()) as progress:
        result = loaded.read(messages, progress=progress, folder=session, save_every=save_every, overwrite=overwrite)
    told = f'{result.tokens:,} tokens read, saved in {session}: vl ask {session} "..."'
    stderr_console().print(Text(printable(told)), soft_wrap=True)


@loading_options()
@sampling_options
def ask(
    session: SessionArgument,
    question: Annotated[str, typer.Argument(help="What to ask about what was read.")],
    images: Annotated[
        list[str] | None, typer.Option("--image", "-i", help="Shown with the question; may be repeated.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="As of vl read.", show_default="the one that has read it"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object: text, usage, timings.")] = False,
    *,
    sampling: dict[str, Any],
    loading: Loading,
) -> None:
    """Ask about what `vl read` has read. The session stays as it is: every question is the first."""
    from vl.engine.session_file import read_manifest

    check_options(sampling, loading.background)
    check_question(question, images)
    saved = read_manifest(session)
    if model is None and Path(saved.name).is_absolute() and not Path(saved.name).exists():
        raise typer.BadParameter(
            f"{printable(str(session))} was read by {printable(saved.name)}, which is not there any more: say where "
            "that model is",
            param_hint="--model",
        )
    opened = [open_image(name, loading.background) for name in images or []]
    loaded = _as_saved(loading, saved, named=model is not None).load(saved.name if model is None else model)
    found = loaded.open(session)
    if json:
        print(jsonlib.dumps(report(found, question, opened, sampling), ensure_ascii=False))
        return
    with ReadingProgress(stderr_console()) as progress:
        show(found.stream(question, images=opened, progress=progress, **sampling))


def _as_saved(loading: Loading, saved: Saved, *, named: bool) -> Loading:
    """Dtype and quantization are those of the session unless given: no others open it.

    A model that is `named` may be quantised in its files, so nothing is asked for there.
    """
    was: dict[str, Any] = {}  # not the options' own types: `vl.load` says what it does not know
    if loading.dtype is None:
        was["dtype"] = saved.model.get("dtype")
    if loading.quantization is None and not named and saved.model.get("quantization") != "none":
        was["quantization"] = saved.model.get("quantization")
    return dataclasses.replace(loading, **was)


def report(session: Session, question: str, images: list[Any], sampling: dict[str, Any]) -> dict[str, Any]:
    """The answer with its token counts and timings."""
    parts = [{"type": "image", "image": image} for image in images]
    turn = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    generation = session.generate([[turn]], **sampling)[0]
    return {
        "text": generation.text,
        "finish_reason": generation.finish_reason,
        "usage": dataclasses.asdict(generation.usage),
        "timings": dataclasses.asdict(generation.timings),
    }
