"""Sessions: what was read once, to be asked about any number of times, now or after it was saved and opened again."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from preprocessing import Conversation, ImageSource, Messages, Processor
from text_backbone.config import SOFTMAX
from vl.documents import PAGE_SIDE, read_documents
from vl.engine.driver import Holding
from vl.engine.identity import Model, differences, identity
from vl.engine.params import SamplingParams, check_single
from vl.engine.prefix import Held
from vl.engine.prompt import Prompt
from vl.engine.reading import Progress, check_progress, told_of_all
from vl.engine.request import Request
from vl.engine.results import Generation, Timings
from vl.engine.session_file import (
    MANIFEST,
    SHARD_BYTES,
    Saved,
    SavedImage,
    check_room,
    folder_of,
    lineages_in,
    make_folder,
    read_manifest,
    read_saved,
    write_session,
)
from vl.engine.session_fill import Stored, undamaged
from vl.engine.session_known import Known
from vl.errors import CheckpointError, InputError
from vl.files import locked
from vl.hub import lasting_name

SAVE_EVERY = 131072  # tokens between two saves of what is being read

Source = Messages | Conversation | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""Messages, or the path of a document, or those of several."""


class Reader(Model, Protocol):
    """A model that reads: `vl.MiniMaxVL`."""

    name: str

    @property
    def processor(self) -> Processor: ...
    @property
    def engine(self) -> Holding: ...


class Session:
    """What a model has read; it stays in the engine's cache until the session is closed, or nobody has it any more.

    Made by `MiniMaxVL.read` and `MiniMaxVL.open`. Questions may be asked by several threads at once.

    Attributes:
        tokens: read so far. `total`: of all that is to be read; more than `tokens` only after a save that a read made
            on its way was opened.
    """

    def __init__(
        self, model: Reader, read: Conversation, ids: Tensor, images: Sequence[SavedImage], held: Held, lineage: str
    ) -> None:
        self._model, self._engine = model, model.engine
        self._known = Known(self._engine, Conversation(read.messages, [], read.tools), ids, tuple(images), held)
        self._lineage = lineage
        self._turn = threading.RLock()  # who reads more begins with what is known when it ends

    @property
    def tokens(self) -> int:
        return self._known.held.tokens

    @property
    def total(self) -> int:
        return len(self._known.ids)

    def ask(
        self,
        question: str | Messages,
        *,
        images: Sequence[ImageSource] = (),
        remember: bool = False,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> str:
        """The answer to a question about what was read.

        Args:
            question: text, or messages that follow on what was read.
            images: that are shown with a question that is text.
            remember: have the session go on from this question and its answer. By default it stays as it is, and every
                question is the first.
            progress: that of `MiniMaxVL.generate`.
            sampling: those of `MiniMaxVL.generate`.

        Raises:
            InputError, ImageError: for what cannot be asked; if what was read is lost, as the model has changed since.
        """
        asked = _asked(question, images, progress)
        if not isinstance(remember, bool):
            raise InputError(f"remember must be True or False, not {remember!r:.80}")
        with self._turn if remember else nullcontext():  # nothing comes between the question and its answer
            request = self._request(asked, sampling)
            answer = self._engine.run([request], progress)[0].text
            if remember:
                turn = Conversation.of([{"role": "assistant", "content": answer}])
                self._extend(replace(asked, messages=[*asked.messages, *turn.messages]), None)
        return answer

    def stream(
        self,
        question: str | Messages,
        *,
        images: Sequence[ImageSource] = (),
        progress: Progress | None = None,
        **sampling: Any,
    ) -> Iterator[str]:
        """The answer piece by piece, as it is written; arguments and errors as of `ask`. Bad input raises here."""
        return self._engine.stream(self._request(_asked(question, images, progress), sampling), progress)

    def generate(
        self, questions: Sequence[str | Messages], *, progress: Progress | None = None, **sampling: Any
    ) -> list[Generation]:
        """Answer many questions at once, each as if it were the only one; arguments and errors as of `ask`."""
        if isinstance(questions, str) or not isinstance(questions, Iterable):
            raise InputError(f"the questions must be a list, not {type(questions).__name__}: ask takes a single one")
        requests = [self._requests(_asked(question, (), progress), sampling) for question in questions]
        return self._engine.run([request for answers in requests for request in answers], progress)

    def add(self, source: Source, *, page_side: int = PAGE_SIDE, progress: Progress | None = None) -> None:
        """Read more: arguments and errors as of `MiniMaxVL.read`. After an error the session is as it was."""
        check_progress(progress)
        with self._turn:
            self._extend(conversation_of(source, page_side), progress)

    def __reduce__(self) -> Any:
        """Raises InputError: a copy of the model has nothing of what is cached."""
        raise InputError("a session cannot be copied or pickled: save it to a folder, and open that with the model")

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the session into a folder, from which `MiniMaxVL.open` has it again, also in another process.

        A session that is in the folder is replaced as a whole: whatever ends the save, the folder holds the old one or
        the new one. Of one that has grown since it was saved there, only what is new is written. Saves into one folder
        wait for each other.

        Raises:
            CheckpointError: if the folder cannot be written; what was in it is as it was.
        """
        return self._save(folder_of(folder), None)

    def _save(self, target: Path, instead_of: Collection[str] | None) -> Path:
        engine, known = self._engine, self._known
        states = engine.states_of(known.held)
        saved = Saved(
            lineage=self._lineage,
            name=lasting_name(self._model.name),
            model=identity(self._model),
            tokens=known.held.tokens,
            total=len(known.ids),
            messages=known.read.messages,
            images=known.images,
            tools=known.read.tools,
        )
        token = _token_bytes(self._model)
        each = 1 << (SHARD_BYTES // token).bit_length() - 1 if 0 < token <= SHARD_BYTES else len(known.ids)
        write_session(target, saved, known.ids, states, partial(engine.stretch_of, known.held), each, instead_of)
        return target

    def close(self) -> None:
        """Give back what the session holds of the cache; it cannot be asked any more. Harmless the second time."""
        held = self._known.held
        held.lost = held.lost or "the session was closed"
        self._engine.let_go(held)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, asked: Conversation, sampling: Mapping[str, Any]) -> Request:
        check_single(sampling)
        return self._requests(asked, sampling)[0]

    def _requests(self, asked: Conversation, sampling: Mapping[str, Any]) -> list[Request]:
        params = SamplingParams.of(sampling)
        self._engine.stay_in_process()
        with self._turn:
            self._check()
            begun = time.perf_counter()
            rest = self._prompt(self._model.processor.continuation(self._known.read, asked))
            timings = Timings(preprocess=time.perf_counter() - begun)
            params = params.offering([*self._known.read.tools, *asked.tools], self._model.processor)
            return self._engine.prepare_answers(rest.behind(self._known.ids), params, timings, after=self._known.held)

    def _check(self) -> None:
        if lost := self._known.held.lost:
            raise InputError(f"what this session has read is gone ({lost}): read it again, or open a save")
        if self.tokens < self.total:
            raise InputError(
                f"this session has read {self.tokens:,} of {self.total:,} tokens: read the same again into its folder, "
                "which goes on from there"
            )

    def _prompt(self, inputs: Any) -> Prompt:
        return Prompt.of(inputs, self._model.config, self._model.name)

    def _extend(self, new: Conversation, progress: Progress | None) -> None:
        self._check()
        known = self._known
        read, more = (replace(each, tools=[]) for each in (known.read, new))
        rest = self._prompt(self._model.processor.continuation(read, more, add_generation_prompt=False))
        whole = rest.behind(known.ids)
        held = _read_on(self._engine, whole, known.held, (len(whole),), progress, None)
        read = Conversation([*known.read.messages, *new.messages], [], [*known.read.tools, *new.tools])
        self._known = Known(self._engine, read, whole.input_ids, (*known.images, *_images(rest)), held)


def read(
    model: Reader,
    source: Source,
    *,
    page_side: int = PAGE_SIDE,
    progress: Progress | None = None,
    folder: str | os.PathLike[str] | None = None,
    save_every: int = SAVE_EVERY,
    overwrite: bool = False,
) -> Session:
    """As `vl.MiniMaxVL.read`."""
    model.engine.stay_in_process()
    if not isinstance(overwrite, bool):
        raise InputError(f"overwrite must be True or False, not {overwrite!r:.80}")
    if isinstance(save_every, bool) or not isinstance(save_every, int) or save_every < 1:
        raise InputError(f"save_every must be a whole number of tokens of at least 1, not {save_every!r:.80}")
    conversation = conversation_of(source, page_side)
    if conversation.tools:  # a template that would not take them with a question is refused now
        model.processor.continuation(conversation, [{"role": "user", "content": ""}])
    target = None if folder is None else make_folder(folder)
    inputs = model.processor(replace(conversation, tools=[]), add_generation_prompt=False)  # they go with each question
    whole = Prompt.of(inputs, model.config, model.name)
    images = _images(whole)
    if target is None:
        held = _read_on(model.engine, whole, None, (len(whole),), progress, None)
        return Session(model, conversation, whole.input_ids, images, held, secrets.token_hex(8))
    with locked(target, shared=True):
        session = None if overwrite else _begun(model, target, whole, images, conversation.tools)
        there = lineages_in(target)
    if session is not None and session.tokens == session.total:
        return session
    lineage = secrets.token_hex(8) if session is None else session._lineage
    check_room(target, _token_bytes(model) * (len(whole) - (0 if session is None else session.tokens)))

    def save(held: Held) -> None:
        nonlocal session
        session = session or Session(model, conversation, whole.input_ids, images, held, lineage)
        if session._known.held is not held:
            session._known = replace(session._known, held=held)
        session._save(target, {lineage, *there})

    after = None if session is None else session._known.held
    first = 0 if after is None else after.tokens
    stops = (*range(first + save_every, len(whole), save_every), len(whole))
    _read_on(model.engine, whole, after, stops, progress, save)
    assert session is not None
    return session


def open_session(model: Reader, folder: str | os.PathLike[str]) -> Session:
    """As `vl.MiniMaxVL.open`."""
    target = folder_of(folder)
    with locked(target, shared=True):
        return _open(model, target, read_manifest(target))


def _open(model: Reader, folder: Path, saved: Saved) -> Session:
    model.engine.stay_in_process()
    other = differences(dict(saved.model), identity(model))
    if other:
        raise CheckpointError(
            f"{folder} is a session of another model than {model.name or 'this one'}: it differs in "
            f"{', '.join(other)}; load {saved.name!r:.200} as it was when the session was saved, or read anew"
        )
    with undamaged(folder):
        all_ids = read_saved(folder, saved, saved.ids)["input_ids"].clone()
    held = model.engine.adopt(saved.tokens, Stored(folder, saved))
    read_before = Conversation([dict(message) for message in saved.messages], [], [dict(tool) for tool in saved.tools])
    return Session(model, read_before, all_ids, saved.images, held, saved.lineage)


def _begun(
    model: Reader, folder: Path, whole: Prompt, images: Sequence[SavedImage], tools: Sequence[Mapping[str, Any]]
) -> Session | None:
    """The session in a folder that has read a beginning of this, or all of it; None if there is no session.

    Raises CheckpointError if it has read something else, or is another model's: it would be lost.
    """
    if not (folder / MANIFEST).exists():
        return None
    saved = read_manifest(folder)
    same = saved.total == len(whole) and (list(saved.images), list(saved.tools)) == (list(images), list(tools))
    if not same or not torch.equal(read_saved(folder, saved, saved.ids)["input_ids"], whole.input_ids):
        raise CheckpointError(
            f"{folder} holds a session that has read something else: give another folder, or overwrite it"
        )
    return _open(model, folder, saved)


def _read_on(
    engine: Holding,
    whole: Prompt,
    after: Held | None,
    stops: Sequence[int],
    progress: Progress | None,
    reached: Callable[[Held], None] | None,
) -> Held:
    """Read a prompt, of which `after` is read, up to each of `stops`; `reached` is told what is held then."""
    told = None if progress is None else told_of_all(progress, len(whole), after.tokens if after else 0)
    held = after
    for stop in stops:
        request = engine.prepare(whole.until(stop), SamplingParams(max_new_tokens=1), after=held, hold=True)
        try:
            engine.run([request], told)
        except BaseException:  # of `told`, when all is read
            if request.held is not None:
                engine.let_go(request.held)
            raise
        before, held = held, request.held
        assert held is not None
        if reached is not None:
            reached(held)
        elif before is not None and before is not after:
            engine.let_go(before)
    assert held is not None
    return held


def _token_bytes(model: Reader) -> int:
    """Of a token's keys and values."""
    text = model.config.text
    layers = sum(kind == SOFTMAX for kind in text.attn_type_list)
    return 2 * layers * text.num_key_value_heads * text.head_dim * model.dtype.itemsize


def conversation_of(source: Source, page_side: int = PAGE_SIDE) -> Conversation:
    """What is to be read, checked. Raises InputError, ImageError naming what cannot be."""
    if isinstance(source, Conversation):
        return source
    if isinstance(source, str | os.PathLike):
        return Conversation.of(read_documents([source], page_side=page_side))
    if isinstance(source, Sequence) and source and all(isinstance(each, str | os.PathLike) for each in source):
        return Conversation.of(read_documents(source, page_side=page_side))  # type: ignore[arg-type]
    if isinstance(source, Sequence) and any(isinstance(each, str | os.PathLike) for each in source):
        raise InputError("messages and paths of documents cannot be read in one: read one, and add the other")
    return Conversation.of(source)  # type: ignore[arg-type]


def _asked(question: str | Messages, images: Sequence[ImageSource], progress: Progress | None) -> Conversation:
    check_progress(progress)
    if not isinstance(images, list | tuple):
        raise InputError(f"images must be a list of images, not {type(images).__name__}: write [image] for one")
    if isinstance(question, str):
        if not question.strip() and not len(images):
            raise InputError("the question is empty: say what to ask, or show an image")
        parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
        return Conversation.of([{"role": "user", "content": [*parts, {"type": "text", "text": question}]}])
    if len(images):
        raise InputError("images= goes with a question that is text; put them into the messages' parts")
    return Conversation.of(question)


def _images(prompt: Prompt) -> list[SavedImage]:
    return [SavedImage(digest.hex(), grid) for digest, grid in zip(prompt.digests, prompt.grids, strict=True)]
