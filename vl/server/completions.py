"""`/v1/completions`: texts that are gone on from, as a whole or chunk by chunk."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import accumulate
from typing import Any

from preprocessing import Processor
from vl.engine import TokenLogprob
from vl.server.answers import Generating, Head, likelihood, usage_of
from vl.server.openai import CompletionRequest
from vl.server.prompts import Prepared


class Completions:
    """Answers one request; the arguments are those of `vl.server.chat.ChatAnswer`."""

    def __init__(
        self,
        generating: Generating,
        request: CompletionRequest,
        prepared: Prepared,
        processor: Processor,
        model: str,
        arrival: float,
    ) -> None:
        self._request, self._requests, self._processor = request, prepared.requests, processor
        self._deltas = generating.deltas(prepared.requests, arrival)
        self._head = Head("text_completion", "cmpl", model)

    async def whole(self) -> dict[str, Any]:
        async with aclosing(self._deltas) as deltas:
            async for _ in deltas:
                pass
        choices = [
            self._choice(number, self._echo(number) + request.text, request.logprobs, request.finish_reason)
            for number, request in enumerate(self._requests)
        ]
        return self._head(choices=choices, usage=self._usage)

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        with_usage = self._request.with_usage
        usage: dict[str, Any] = {"usage": None} if with_usage else {}
        begun, offsets = set[int](), [0] * len(self._requests)
        async with aclosing(self._deltas) as deltas:
            async for number, delta in deltas:
                text = delta.text
                if number not in begun:
                    begun.add(number)
                    text = self._echo(number) + text
                reason = self._requests[number].finish_reason if delta.done else None
                if text or reason or delta.logprobs:
                    choice = self._choice(number, text, delta.logprobs, reason, offsets[number])
                    offsets[number] += sum(len(each.token) for each in delta.logprobs)
                    yield self._head(choices=[choice]) | usage
        if with_usage:
            yield self._head(choices=[], usage=self._usage)

    def _choice(
        self, number: int, text: str, found: Sequence[TokenLogprob], reason: str | None, offset: int = 0
    ) -> dict[str, Any]:
        logprobs = None if self._request.logprobs is None else _logprobs(found, offset)
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _echo(self, number: int) -> str:
        """The prompt of an answer, if it is to begin with it."""
        if not self._request.echo:
            return ""
        prompt = self._request.prompts[number // self._request.answers]
        return prompt if isinstance(prompt, str) else self._processor.tokenizer.decode(prompt, False)

    @property
    def _usage(self) -> dict[str, Any]:
        return usage_of(self._requests, self._request.answers)


def _logprobs(found: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """Of tokens, whose text begins after `offset` characters of the answer."""
    ends = accumulate((len(each.token) for each in found), initial=offset)
    return {
        "tokens": [each.token for each in found],
        "token_logprobs": [likelihood(each)["logprob"] for each in found],
        "top_logprobs": [{top.token: likelihood(top)["logprob"] for top in each.top} for each in found],
        "text_offset": [start for start, _ in zip(ends, found, strict=False)],
    }
