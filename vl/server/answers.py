"""Answers in the making: several at once, each one's text, and the calls of functions in it."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from preprocessing import Processor
from preprocessing.tools import FUNCTION_CALL, ToolCall, parse_tool_calls
from preprocessing.unicode import well_formed
from vl.engine import AsyncEngine, Delta, Request, TokenLogprob
from vl.server.metrics import Metrics
from vl.server.prompts import Prepared

_IMPOSSIBLE = -9999.0


class Generating:
    """Has the engine write what a request asks for, and counts it. `arrival`: of the request, by `time.monotonic`."""

    def __init__(self, engine: AsyncEngine, metrics: Metrics) -> None:
        self._engine, self._metrics = engine, metrics

    async def deltas(self, requests: Sequence[Request], arrival: float) -> AsyncGenerator[tuple[int, Delta], None]:
        """What the requests get, by their numbers, as it comes. Raises what one fails of; that ends all."""
        coming: asyncio.Queue[tuple[int, Delta] | BaseException] = asyncio.Queue()

        async def follow(number: int, request: Request) -> None:
            try:
                async with aclosing(self._metrics.follow(self._engine, request, arrival)) as deltas:
                    async for delta in deltas:
                        coming.put_nowait((number, delta))
            except Exception as error:
                coming.put_nowait(error)

        tasks = [asyncio.create_task(follow(number, request)) for number, request in enumerate(requests)]
        left = len(tasks)
        try:
            while left:
                found = await coming.get()
                if isinstance(found, BaseException):
                    raise found
                left -= found[1].done
                yield found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class Head:
    """What all parts of an answer begin with."""

    def __init__(self, kind: str, prefix: str, model: str) -> None:
        self._kind, self._model = kind, model
        self._id, self._created = f"{prefix}-{secrets.token_hex(12)}", int(time.time())

    def __call__(self, suffix: str = "", **contents: Any) -> dict[str, Any]:
        named = {"id": self._id, "object": self._kind + suffix, "created": self._created, "model": self._model}
        return {**named, **contents}


def usage_of(requests: Iterable[Request], answers: int = 1) -> dict[str, Any]:
    """Tokens of some answers, of which as many as `answers` share each prompt."""
    usages = [request.usage for request in requests]
    prompts = usages[::answers]
    prompt, written = sum(u.prompt_tokens for u in prompts), sum(u.completion_tokens for u in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {
            "cached_tokens": sum(u.cached_tokens for u in prompts),
            "image_tokens": sum(u.image_tokens for u in prompts),
        },
        "completion_tokens_details": {"reasoning_tokens": sum(u.reasoning_tokens for u in usages)},
    }


def likelihood(found: TokenLogprob) -> dict[str, Any]:
    """How likely a token was, without those that were likelier."""
    # JSON has no infinity.
    return {"token": found.token, "logprob": max(found.logprob, _IMPOSSIBLE), "bytes": found.bytes}


class Choice:
    """One answer of a chat: what of it is content, and which functions it calls.

    Args:
        request: what is written. It is asked for its text and tokens when it is done.
        prepared: whether functions may be called, and what a call has begun with.
    """

    def __init__(self, request: Request, prepared: Prepared, processor: Processor) -> None:
        self.request = request
        self._processor, self._begun, self._most = processor, prepared.begun, prepared.most_calls
        self._token = processor.tokenizer.token_id(FUNCTION_CALL) if prepared.tools else None
        self._calling = bool(prepared.begun)
        self._sent, self._taken = "", 0

    def take(self, delta: Delta) -> str:
        """The text that is content for certain: not of a call."""
        thought = max(0, self.request.reasoning_tokens - self._taken)  # of this delta's tokens; later ones count later
        self._taken += len(delta.token_ids)
        self._calling = self._calling or self._token in delta.token_ids[thought:]
        if self._calling:
            return ""
        self._sent += delta.text
        return delta.text

    def end(self) -> tuple[str, list[dict[str, Any]], str]:
        """The content that `take` has not given, the calls, and why the answer ended."""
        request = self.request
        content, calls, said, reason = request.text, list[ToolCall](), request.said_ids, str(request.finish_reason)
        if self._calling or self._token in said:
            calls = parse_tool_calls(self._written())[: self._most]
            # What was cut before it told which function it calls is no text either.
            if calls or self._begun or request.stopped is not None or reason == "length":
                ids = [] if self._begun else said[: said.index(self._token or 0)]
                content = self._processor.tokenizer.decode(ids)
        cut = request.stopped is not None and bool(calls) and isinstance(calls[-1].arguments, str)
        if calls and reason == "stop" and not cut:
            reason = "tool_calls"
        rest = content[len(self._sent) :] if content.startswith(self._sent) else ""
        return rest, [_call(call) for call in calls], reason

    def _written(self) -> str:
        """All of the answer, its calls too, up to the stop string that ended it."""
        decode = self._processor.tokenizer.decode
        begun, said = decode(self._begun, False), decode([*self._begun, *self.request.said_ids], False)
        at = -1 if self.request.stopped is None else said.find(self.request.stopped, len(begun))
        return said if at < 0 else said[:at]


def _call(call: ToolCall) -> dict[str, Any]:
    text = call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments, ensure_ascii=False)
    text = well_formed(text)  # half a surrogate pair, which escapes can spell, is nothing that clients could send back
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": call.name, "arguments": text},
    }
