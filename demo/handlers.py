"""What happens when something on the page is used. Results are values of page components, in the order given."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import gradio as gr
from gradio.utils import get_upload_folder

from demo.gallery import GalleryItem
from demo.limits import check_length, sampling
from demo.overlay import draw_tiles
from demo.talk import Session, Talk
from demo.text import count, describe_answer, describe_grid, note
from preprocessing import load_image
from vl.engine import SamplingParams, Timings
from vl.errors import Error, InputError
from vl.model import DEFAULT_PROMPT

if TYPE_CHECKING:
    from vl.model import MiniMaxVL

SECONDS_BETWEEN_UPDATES = 0.05
BROWSER_FORMATS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif"}
ASK: dict[str, Any] = {"submit_btn": "Ask", "stop_btn": False}
STOP: dict[str, Any] = {"submit_btn": False, "stop_btn": "Stop"}

Values: TypeAlias = tuple[Any, ...]
log = logging.getLogger(__name__)


class Handlers:
    """The page's behaviour, for one model. Raises InputError for a checkpoint that takes no images."""

    def __init__(self, model: MiniMaxVL) -> None:
        if model.processor.patcher is None:
            raise InputError(f"{model.name} is a text-only checkpoint and the page is about images: use a VL one")
        self.model = model
        self.patcher = model.processor.patcher
        self.background = model.processor.background

    # The image

    def upload(self, payload: dict[str, Any] | None, session: Session) -> Values:
        """An image was chosen, dropped, pasted or removed. Results: image, overlay, layout, chat, status."""
        path = payload["path"] if payload else None
        if path is not None and not is_upload(path):
            session.begin(None)
            return None, None, note("Add the image through the page: this file was not uploaded.", "error"), [], ""
        return self.show(path, session)

    def show(self, path: str | None, session: Session) -> Values:
        """Begin a talk about the image at `path`, or none. Results as of `upload`."""
        session.begin(None)
        if path is None:
            return None, None, "", [], ""
        name = Path(path).name
        try:
            # Bytes, for messages then have no path of the server.
            image = load_image(Path(path).read_bytes(), name=name, background=self.background)
        except (Error, OSError) as error:
            reason = str(error) if isinstance(error, Error) else f"{name}: the file cannot be read"
            return None, None, note(reason, "error"), [], ""
        session.begin(path)
        grid = self.patcher.grid(image.width, image.height)
        layout = describe_grid(grid)
        overlay = gr.update(value=draw_tiles(image, grid), alt_text=f"The image as the model sees it: {layout}")
        # What browsers do not show (TIFF...) is shown as decoded here.
        shown = path if Path(path).suffix.lower() in BROWSER_FORMATS else image
        return shown, overlay, note(layout), [], ""

    def example(self, example: GalleryItem, session: Session) -> Values:
        """An example was clicked. Results: question, then as of `upload`."""
        return example.question, *self.show(str(example.path), session)

    def clear(self, session: Session) -> str:
        """The conversation was cleared; the image stays. Result: status."""
        session.begin(session.talk.image if session.talk else None)
        return ""

    # The answer

    def ask(self, question: str | None, session: Session) -> Values:
        """Accept a question, unless it is too long or one is being answered. Results: question, chat, status."""
        talk = session.talk
        if talk is None:
            return gr.skip(), gr.skip(), note("Add an image first, or click an example.", "error")
        if talk.asked is not None:
            return gr.skip(), gr.skip(), gr.skip()
        question = (question or "").strip() or DEFAULT_PROMPT
        try:
            check_length(question, talk.length)
        except InputError as error:
            return gr.skip(), gr.skip(), note(str(error), "error")
        talk.asked, talk.stopped = question, False
        return gr.update(value="", **STOP), talk.shown(), note("Waiting for the model…", "busy")

    def stop(self, session: Session) -> None:
        if session.talk is not None:
            session.talk.stopped = True

    def rest(self, session: Session) -> Any:
        """Make the question box ready for the next question once nothing is being answered. Result: question."""
        answering = session.talk is not None and session.talk.asked is not None
        return gr.skip() if answering else gr.update(**ASK)

    def answer(
        self, session: Session, max_new_tokens: object, temperature: object, top_p: object, seed: object
    ) -> Iterator[Values]:
        """Answer the accepted question, piece by piece. Results: question, chat, status.

        The settings are as `demo.limits.sampling` takes them.
        A question that cannot be answered goes back into its box, with the reason in the status line.
        """
        talk = session.talk
        if talk is None or talk.asked is None:
            yield gr.skip(), gr.skip(), gr.skip()  # yielding nothing would clear the hint that `ask` has shown
            return
        try:
            params = sampling(max_new_tokens, temperature, top_p, seed)
            for chat, status in self._write(talk, params):
                if session.talk is not talk:
                    return
                yield gr.skip(), chat, status
        except Exception as error:
            question, talk.asked = talk.asked, None
            if session.talk is talk:
                yield question, talk.shown(), note(reason_of(error), "error")
        finally:
            talk.asked = None

    def ask_once(
        self,
        image: dict[str, Any],
        question: str = DEFAULT_PROMPT,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> str:
        """Ask one question about an image, such as `gradio_client.handle_file("photo.jpg")`, and get the answer."""
        # The line above is what clients are shown. Every reason is a gr.Error: clients are given no other's message.
        try:
            params = sampling(max_new_tokens, temperature, top_p, seed)
            if not isinstance(question, str):
                raise InputError("question must be text")
            question = question.strip() or DEFAULT_PROMPT
            check_length(question)
            path = path_of(image)
            if path is None:
                raise InputError("image must be an uploaded file: with gradio_client, handle_file(path or URL)")
            picture = load_image(Path(path).read_bytes(), name=Path(path).name, background=self.background)
            return self.model.caption(picture, question, **asdict(params))
        except Exception as error:
            raise gr.Error(reason_of(error), print_exception=False) from error

    def _write(self, talk: Talk, params: SamplingParams) -> Iterator[tuple[list[dict[str, str]], str]]:
        """Drive the model; yields the chat and the status line as they grow."""
        start = time.perf_counter()
        inputs = self.model.processor(talk.prompt())
        timings = Timings(preprocess=time.perf_counter() - start)
        yield talk.shown(""), note(f"Reading {count(inputs.input_ids.numel(), 'token')}…", "busy")
        engine, updated = self.model.engine, 0.0
        request = engine.submit(inputs, params, timings)
        try:
            # Step by step rather than piece by piece, so that Stop also ends the reading of a long prompt.
            while not (request.done or talk.stopped):
                engine.step()
                if time.perf_counter() - updated >= SECONDS_BETWEEN_UPDATES and request.text:
                    updated = time.perf_counter()
                    yield talk.shown(request.text), note(f"Writing… {count(len(request.token_ids), 'token')}", "busy")
        finally:
            engine.cancel(request)
        if request.error is not None:
            raise request.error
        talk.turns.append((talk.asked or "", request.text))
        talk.asked = None
        yield talk.shown(), note(describe_answer(request.finish_reason, request.usage, request.timings))


def reason_of(error: Exception) -> str:
    """What to tell the visitor; what was not meant to happen goes to the log too."""
    if isinstance(error, Error):
        return str(error)
    log.error("the answer failed", exc_info=error)
    cause = (str(error).splitlines() or ["no message"])[0]
    return f"The answer failed ({type(error).__name__}: {cause}). The page is still usable."


def path_of(image: object) -> str | None:
    """Where the upload that a client's `FileData` stands for lies, None if it is none."""
    path = image.get("path") if isinstance(image, dict) else None
    return path if isinstance(path, str) and is_upload(path) else None


def is_upload(path: str) -> bool:
    """Whether the file lies where Gradio puts uploads; a forged request may name any file of this machine."""
    return Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve())
