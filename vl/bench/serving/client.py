"""One client of any server that speaks OpenAI's chat completions: what it sees of an answer, and when."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import httpx

from vl.errors import ConfigError, Error
from vl.jobs.served import base_url, message_of, retry_after

Body = Mapping[str, Any]

_TIMEOUT = httpx.Timeout(600.0, connect=30.0)
_IDLE = 2.0  # seconds for which a connection is kept; servers close theirs after some 5, maybe under a new request
_SAID = ("content", "reasoning_content", "reasoning", "tool_calls")  # of a chunk, what holds tokens
_DONE = "[DONE]"
_LEFT, _NO_COMPLETION = "cancelled", "no chat completion"
_NOT_AN_ANSWER = (ValueError, KeyError, TypeError, AttributeError)


@dataclass
class Answer:
    """What one request got. Times are of `time.perf_counter`.

    Attributes:
        sent, ended: when it was sent, and when all of its answer was there.
        chunks: when each piece of the answer came that holds tokens, the one that ends it too.
        prompt_tokens, cached_tokens, output_tokens: as the server counts them in its last chunk.
        finish: why the answer ended, in the server's words; "cancelled": the client left.
        failure: the cause, if there is no whole answer. `message`: what the server said of it.
        status: of HTTP; 0: there was none. `retry_after`: seconds that a server asks to wait.
    """

    sent: float
    ended: float = 0.0
    chunks: list[float] = field(default_factory=list)
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finish: str = ""
    failure: str = ""
    message: str = ""
    status: int = 0
    retry_after: float = 0.0


class Client:
    """Sends requests to one server, as many at a time as are asked for; an asynchronous context manager.

    Args:
        url: such as http://localhost:8000/v1.
        key: sent as the bearer token.

    Raises:
        ConfigError: if the URL is none.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = base_url(url)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # No proxy of the environment: it would be measured too.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_IDLE)
        self._client = httpx.AsyncClient(headers=headers, timeout=_TIMEOUT, limits=limits, trust_env=False)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def find_model(self, name: str | None) -> str:
        """The name of a model that the server has; None: its only one.

        Raises:
            ConfigError: if it does not have it, wants another key, or has several and none is named.
            Error: if it cannot be reached, or answers something else.
        """
        try:
            response = await self._client.get(f"{self.url}/models")
        except httpx.HTTPError as error:
            raise Error(f"{self.url} cannot be reached ({_cause(error)}): check that a server runs there") from None
        if response.status_code in (401, 403):
            raise ConfigError(f"{self.url} answered {response.status_code}: give its key with --api-key")
        try:
            names = [str(entry["id"]) for entry in response.json()["data"]] if response.is_success else None
        except (ValueError, KeyError, TypeError):
            names = None
        if names is None:
            said = f"{response.status_code}: {message_of(response)[:100]}"
            raise Error(f"{self.url}/models answered {said}: is it the address of a server as OpenAI's is?")
        known = ", ".join(names) or "no models"
        if name is None and len(names) == 1:
            return names[0]
        if name is None:
            raise ConfigError(f"{self.url} has {known}: say which with --model")
        if name not in names:
            raise ConfigError(f"{self.url} has no model {name}: it has {known}")
        return name

    async def stream(self, body: Body, leave_after: int | None = None) -> Answer:
        """Ask for a chat completion piece by piece; whatever goes wrong is the answer's `failure`.

        Args:
            body: of the request, but for how it is streamed.
            leave_after: close the connection after so many pieces with tokens.
        """
        answer = Answer(sent=time.perf_counter())
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        try:
            async with self._client.stream("POST", f"{self.url}/chat/completions", json=body) as response:
                answer.status = response.status_code
                if response.is_success:
                    await _follow(response, answer, leave_after)
                else:
                    await response.aread()
                    _refused(response, answer)
        except httpx.HTTPError as error:
            answer.failure = _cause(error)
        answer.ended = time.perf_counter()
        return answer

    async def whole(self, body: Body) -> Answer:
        """Ask for a chat completion in one piece; whatever goes wrong is the answer's `failure`."""
        return await self.post(json.dumps(body).encode())

    async def post(self, content: bytes, kind: str = "application/json") -> Answer:
        """Send a body to the chat completions as it stands, for an answer in one piece."""
        answer = Answer(sent=time.perf_counter())
        try:
            response = await self._client.post(
                f"{self.url}/chat/completions", content=content, headers={"Content-Type": kind}
            )
            answer.status = response.status_code
            if response.is_success:
                _note(response.json(), answer)
            else:
                _refused(response, answer)
        except httpx.HTTPError as error:
            answer.failure = _cause(error)
        except _NOT_AN_ANSWER:
            answer.failure, answer.message = _NO_COMPLETION, response.text[:200]
        answer.ended = time.perf_counter()
        return answer

    async def metrics(self) -> str:
        """The server's `/metrics`, in Prometheus' format. Raises httpx.HTTPError if they are not to be had."""
        response = await self._client.get(f"{self.url.removesuffix('/v1')}/metrics")
        response.raise_for_status()
        return response.text


async def _follow(response: httpx.Response, answer: Answer, leave_after: int | None) -> None:
    """Note what comes of a stream, until it ends or is left."""
    async with aclosing(_events(response)) as events:
        async for event in events:
            if leave_after is not None and len(answer.chunks) >= leave_after:
                answer.finish = _LEFT
                return
            if event == _DONE:
                return
            try:
                _note(json.loads(event), answer)
            except _NOT_AN_ANSWER:
                answer.failure, answer.message = _NO_COMPLETION, event[:200]
                return
            if answer.failure:
                return
    answer.failure = "cut off"


async def _events(response: httpx.Response) -> AsyncGenerator[str, None]:
    """Lines end at line feeds alone: httpx ends them at U+2028 and the like too, which JSON may hold as they are."""
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip().decode("utf-8", "replace")
    if rest.startswith(b"data:"):
        yield rest[5:].strip().decode("utf-8", "replace")


def _note(chunk: Any, answer: Answer) -> None:
    """What a chunk says, or all of an answer."""
    if error := chunk.get("error"):
        answer.failure = f"error {error.get('code') or error.get('type') or ''}".rstrip()
        answer.message = str(error.get("message"))
        return
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or choice.get("message") or {}
        reason = choice.get("finish_reason")
        # An answer that the model itself ends has a token more, which is no text.
        if reason == "stop" or any(delta.get(name) for name in _SAID):
            answer.chunks.append(time.perf_counter())
        answer.text += delta.get("content") or ""
        answer.finish = reason or answer.finish
    if usage := chunk.get("usage"):
        answer.prompt_tokens, answer.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def _refused(response: httpx.Response, answer: Answer) -> None:
    answer.message, answer.retry_after = message_of(response), retry_after(response) or 0.0
    answer.failure = f"{response.status_code} {_code(response)}".rstrip()


def _code(response: httpx.Response) -> str:
    """What an error is called: by its code, or its type."""
    try:
        error = response.json()["error"]
        return str(error.get("code") or error.get("type") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return response.reason_phrase


def _cause(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "cannot connect"
    return "timed out" if isinstance(error, httpx.TimeoutException) else f"connection lost: {type(error).__name__}"
