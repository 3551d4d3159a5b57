"""A running server in the place of an engine: any that speaks OpenAI's chat completions and takes images."""

from __future__ import annotations

import asyncio
import base64
import math
import os
import random
import threading
import time
from collections.abc import Coroutine, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from io import BytesIO
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
from PIL import Image

from preprocessing import load_image
from preprocessing.unicode import well_formed
from vl.engine import Generation, SamplingParams, Timings, Usage
from vl.engine.results import FinishReason
from vl.errors import ConfigError, InputError
from vl.jobs.captioning import params_of, sampling_of
from vl.jobs.duplicates import Duplicates
from vl.jobs.elsewhere import Elsewhere
from vl.jobs.errors import JobError
from vl.jobs.item import Item, batches, prepare
from vl.jobs.made import SENT
from vl.jobs.pictures import encoded
from vl.jobs.pipeline import answered
from vl.jobs.prompts import Prompt, Prompts
from vl.jobs.rowfile import Row
from vl.jobs.sources import Picture, Source, source_key

PATIENCE = 900.0
"""Seconds for which a request is tried again: a server that is started anew loads its model for as long."""

_TIMEOUT = httpx.Timeout(600.0, connect=30.0)
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # said of the moment, not of the request
_OF_THE_REQUEST = (400, 413, 415, 422)
_FORM = "response_format"  # in a request, and in what servers say of one that they cannot do
_CRASHES = 5  # 500s for the same request, until they are said of it
_NOT_SENT = ("max_new_tokens", "temperature", "priority")  # under these names, or at all
_SENT_AS_THEY_ARE = {"JPEG": "jpeg", "PNG": "png", "WEBP": "webp"}


@dataclass(frozen=True)
class Question:
    """An image and a text, on their way to a server."""

    image: str  # a data URL
    text: str

    def __len__(self) -> int:
        """By which the longest goes first: what there is to send."""
        return len(self.image) + len(self.text)


class Asked:
    """A request, as the pipeline knows those of an engine."""

    def __init__(self, future: Future[Generation]) -> None:
        self.future = future

    @property
    def done(self) -> bool:
        return self.future.done()

    @property
    def error(self) -> Exception | None:
        """What is wrong with this request. What is wrong with the server is raised by `result`."""
        error = None if self.future.cancelled() else self.future.exception()
        return error if isinstance(error, InputError) else None

    def result(self) -> Generation:
        return self.future.result()


class Served(Elsewhere):
    """Requests to a server, many at a time: `caption_images` takes it as a model. A context manager that ends them.

    What passes (a lost network, 429, 5xx) is tried again, after as long as the server says or longer and longer.

    Args:
        url: such as http://localhost:8000/v1.
        model: its name there; None: the only one that the server has.
        key: sent as the bearer token; None: of the environment, `VL_API_KEY` or `OPENAI_API_KEY`.
        patience: seconds after which a request that only met what passes ends the job.

    Raises:
        ConfigError: if the URL is none, or the server has no such model, or several and none is named.
        JobError: if the server cannot be reached.
    """

    holds_forms = False

    def __init__(
        self, url: str, model: str | None = None, *, key: str | None = None, patience: float = PATIENCE
    ) -> None:
        self.url = base_url(url)
        key = key or os.environ.get("VL_API_KEY") or os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.AsyncClient(headers=headers, timeout=_TIMEOUT, limits=limits)
        self._patience = patience
        self._loop = asyncio.new_event_loop()
        # Of its own: the caller's may have a running loop, as a notebook's has.
        threading.Thread(target=self._loop.run_forever, name="vl-server", daemon=True).start()
        self._waiting: set[Future[Generation]] = set()
        try:
            self.name = model or self._only_model()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Served:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all that is under way."""
        for future in self._waiting:
            future.cancel()
        for work in (self._client.aclose(), self._loop.shutdown_asyncgens()):  # the latter of answers that broke off
            with suppress(Exception):
                self._run(work).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)

    def settings(self, params: SamplingParams) -> dict[str, Any]:
        """What is asked for: of what else decides a caption there, nothing is known here."""
        asked = sampling_of(params)
        return {SENT: asked.pop("max_new_tokens")} | asked

    def rows(self, sources: Iterable[Source], **options: Any) -> Generator[list[Row], None, None]:
        """As `caption_rows`, but for the columns that the server keeps to itself; `batch_size` requests at a time."""
        return self._rows(sources, **options)

    def _rows(
        self,
        sources: Iterable[Source],
        *,
        prompt: Prompt,
        batch_size: int = 8,
        workers: int | None = None,
        **sampling: Any,
    ) -> Generator[list[Row], None, None]:
        params, prompts = params_of(sampling), Prompts.of(prompt)
        known = {"model": self.name, "settings": self.settings(params) | prompts.settings}
        duplicates: Duplicates[Item] = Duplicates()
        make = partial(prepare, questions, prompts, known, duplicates)
        items = answered(self, sources, make, prompts.hold(params), batch_size=batch_size, workers=workers or None)
        return batches(items, batch_size, duplicates)

    # What the pipeline asks of an engine

    def submit(self, question: Question, params: SamplingParams) -> Asked:
        future = self._run(self._answer(question, params))
        self._waiting.add(future)
        return Asked(future)

    def step(self) -> None:
        """Wait until a request has ended."""
        _, self._waiting = wait(self._waiting, return_when=FIRST_COMPLETED)

    def cancel(self, request: Asked) -> None:
        request.future.cancel()
        self._waiting.discard(request.future)

    # Requests

    def _run(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _only_model(self) -> str:
        answer = self._run(self._ask("GET", "models", None)).result()
        listed = answer.get("data") if isinstance(answer, dict) else None
        names = [
            str(entry.get("id")) for entry in (listed if isinstance(listed, list) else []) if isinstance(entry, dict)
        ]
        if len(names) != 1:
            raise ConfigError(f"{self.url} has {', '.join(names) or 'no models'}: say which with --model")
        return names[0]

    async def _answer(self, question: Question, params: SamplingParams) -> Generation:
        started = time.monotonic()
        answer = await self._ask("POST", "chat/completions", _body(self.name, question, params))
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"]
            reason = choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise InputError(f"the server's answer is no chat completion: {str(answer)[:200]}") from None
        if not isinstance(text, str):
            raise InputError(f"the server's answer has no text (finish_reason {reason!r})")
        counts = [_count(answer.get("usage"), name) for name in ("prompt_tokens", "completion_tokens")]
        ended: FinishReason = "length" if reason == "length" else "stop"
        spent = Timings(decode=time.monotonic() - started)
        return Generation(well_formed(text), [], ended, Usage(counts[0], 0, counts[1]), spent)

    async def _ask(self, method: str, path: str, body: Any) -> Any:
        """The JSON of an answer. Raises InputError for what is wrong with this request, JobError for all else."""
        given_up = time.monotonic() + self._patience
        pause, crashes = _FIRST_WAIT, 0
        while True:
            said, after = "", None
            try:
                response = await self._client.request(method, f"{self.url}/{path}", json=body)
            except (httpx.TransportError, httpx.DecodingError) as error:
                said = f"{type(error).__name__}: {error}".rstrip(": ")
            else:
                if response.is_success:
                    with suppress(ValueError, RecursionError):
                        return response.json()
                    said = f"not JSON but {response.text[:100]!r}"
                else:
                    said = f"{response.status_code}: {message_of(response)}"
                    after = retry_after(response)
                crashes += response.status_code == 500
                if response.status_code in _OF_THE_REQUEST and _FORM in (body or ()) and _FORM in response.text:
                    raise JobError(
                        f"{self.url} cannot hold answers to the schema, whatever the image: {said}. Say it in another "
                        "way, or leave it out"
                    )
                if response.status_code in _OF_THE_REQUEST or crashes == _CRASHES:
                    raise InputError(f"the server refused it with {said}")
                if response.status_code not in _PASSING:
                    raise JobError(f"{self.url} answered {said}: check the address, the key and the model's name")
            delay = pause * random.uniform(0.5, 1.0) if after is None else after
            if time.monotonic() + delay > given_up:
                raise JobError(
                    f"{self.url} could not be used for {self._patience:,.0f} s, at last: {said}. The rows so far are "
                    "safe: run the same command again when it can"
                )
            await asyncio.sleep(delay)
            pause = min(2 * pause, _LONGEST_WAIT)


def questions(source: str | Picture, texts: Sequence[str]) -> tuple[list[Question], Row]:
    """What to ask of an image, and what its row then knows: its size.

    Raises:
        ImageError: if it cannot be read or decoded.
    """
    url, size = data_url(source)
    return [Question(url, text) for text in texts], dict(zip(("width", "height"), size, strict=True))


def data_url(source: str | Picture) -> tuple[str, tuple[int, int]]:
    """An image as a request holds it, and its width and height. Files of other formats go as PNG.

    Raises:
        ImageError: if it cannot be read or decoded.
    """
    content = encoded(source)
    image = load_image({"bytes": content, "path": source_key(source)})
    with Image.open(BytesIO(content)) as file:
        kind = _SENT_AS_THEY_ARE.get(file.format or "")
        alone = getattr(file, "n_frames", 1) == 1
    if kind is None or not alone:
        buffer = BytesIO()
        image.save(buffer, "png")
        kind, content = "png", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}", image.size


def _body(model: str, question: Question, params: SamplingParams) -> Row:
    image = {"type": "image_url", "image_url": {"url": question.image}}
    content = [image, {"type": "text", "text": question.text}]
    return {"model": model, "messages": [{"role": "user", "content": content}], **_sampling(params)}


def _sampling(params: SamplingParams) -> Row:
    """As OpenAI names it; what is not its default there, such as `top_k`, only where it is asked for."""
    found: Row = {SENT: params.max_new_tokens, "temperature": params.temperature}
    for option in fields(params):
        if option.name not in _NOT_SENT and (value := getattr(params, option.name)) != option.default:
            found[option.name] = list(params.stops) if option.name == "stop" else value
    return found


def _count(usage: Any, name: str) -> int:
    """Of tokens; 0 from a server that does not say."""
    said = usage.get(name) if isinstance(usage, dict) else None
    return said if isinstance(said, int) else 0


def base_url(url: str) -> str:
    """Under which a server's paths are. Raises ConfigError if it is no address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"{url!r} is no address of a server: give one such as http://localhost:8000/v1")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return urlunsplit((parts.scheme, parts.netloc, path or "/v1", "", ""))


def message_of(response: httpx.Response) -> str:
    """What an answer that is an error says."""
    with suppress(ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return str(response.json()["error"]["message"])[:300]
    return response.text[:300] or response.reason_phrase


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait, which it says as a number or a date."""
    said = response.headers.get("Retry-After", "")
    with suppress(ValueError):
        return None if math.isnan(seconds := float(said)) else max(seconds, 0.0)
    with suppress(ValueError, TypeError):
        return max((parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds(), 0.0)
    return None
