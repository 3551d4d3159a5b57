"""`/v1/chat/completions`: an answer as a whole, or chunk by chunk."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from preprocessing import Processor
from vl.engine import TokenLogprob
from vl.server.answers import Choice, Generating, Head, likelihood, usage_of
from vl.server.openai import ChatRequest
from vl.server.prompts import Prepared


class ChatAnswer:
    """Answers one request.

    Args:
        model: what the answer calls the model.
        arrival: of the request, by `time.monotonic`.
    """

    def __init__(
        self,
        generating: Generating,
        request: ChatRequest,
        prepared: Prepared,
        processor: Processor,
        model: str,
        arrival: float,
    ) -> None:
        self._request, self._prepared = request, prepared
        self._deltas = generating.deltas(prepared.requests, arrival)
        self._choices = [Choice(each, prepared, processor) for each in prepared.requests]
        self._head = Head("chat.completion", "chatcmpl", model)

    async def whole(self) -> dict[str, Any]:
        async with aclosing(self._deltas) as deltas:
            async for _ in deltas:
                pass
        choices = [self._finished(number, choice) for number, choice in enumerate(self._choices)]
        return self._head(choices=choices, usage=self._usage)

    def _finished(self, number: int, choice: Choice) -> dict[str, Any]:
        content, calls, reason = choice.end()
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message |= {"content": content or None, "tool_calls": calls}
        if choice.request.reasoning:
            message["reasoning_content"] = choice.request.reasoning
        logprobs = self._logprobs(choice.request.logprobs)
        return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": reason}

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        with_usage = self._request.with_usage
        usage: dict[str, Any] = {"usage": None} if with_usage else {}
        begun = set[int]()
        async with aclosing(self._deltas) as deltas:
            async for number, delta in deltas:
                choice = self._choices[number]
                if number not in begun:
                    begun.add(number)
                    yield self._chunk(number, {"role": "assistant", "content": ""}) | usage
                logprobs = self._logprobs(delta.logprobs) if delta.logprobs else None
                said = {"reasoning_content": delta.reasoning} if delta.reasoning else {}
                if (text := choice.take(delta)) or (logprobs and not said):
                    said["content"] = text
                if said:
                    yield self._chunk(number, said, logprobs=logprobs) | usage
                if delta.done:
                    rest, calls, reason = choice.end()
                    if rest:
                        yield self._chunk(number, {"content": rest}) | usage
                    if calls:
                        called = [{"index": at, **call} for at, call in enumerate(calls)]
                        yield self._chunk(number, {"tool_calls": called}) | usage
                    yield self._chunk(number, {}, reason) | usage
        if with_usage:
            yield self._head(".chunk", choices=[], usage=self._usage)

    def _chunk(
        self, number: int, delta: dict[str, Any], reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._head(".chunk", choices=[choice])

    def _logprobs(self, found: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """Of tokens, if they were asked for."""
        if not self._request.logprobs:
            return None
        content = [{**likelihood(each), "top_logprobs": [likelihood(top) for top in each.top]} for each in found]
        return {"content": content, "refusal": None}

    @property
    def _usage(self) -> dict[str, Any]:
        return usage_of(self._prepared.requests, self._request.answers)
