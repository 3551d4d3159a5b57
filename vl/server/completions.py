"""`/v1/completions`: texts that are gone on from, as a whole or chunk by chunk."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from preprocessing import Processor
from preprocessing.tokenizer import TextStream
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
        self._likelihoods = [_Likelihoods(processor.tokenizer.stream()) for _ in prepared.requests]
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
        begun = set[int]()
        async with aclosing(self._deltas) as deltas:
            async for number, delta in deltas:
                text = delta.text
                if number not in begun:
                    begun.add(number)
                    text = self._echo(number) + text
                reason = self._requests[number].finish_reason if delta.done else None
                if text or reason or delta.logprobs:
                    choice = self._choice(number, text, delta.logprobs, reason)
                    yield self._head(choices=[choice]) | usage
        if with_usage:
            yield self._head(choices=[], usage=self._usage)

    def _choice(self, number: int, text: str, found: Sequence[TokenLogprob], reason: str | None) -> dict[str, Any]:
        logprobs = None if self._request.logprobs is None else self._likelihoods[number](found)
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


class _Likelihoods:
    """How likely the tokens of one answer were, told as they come.

    Args:
        stream: decodes them once more: where each begins in the text depends on the bytes of those before it.
    """

    def __init__(self, stream: TextStream) -> None:
        self._stream, self._length = stream, 0

    def __call__(self, found: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Of the next tokens. A token inside of a character has the offset of that character."""
        return {
            "tokens": [_spelt(each) for each in found],
            "token_logprobs": [likelihood(each)["logprob"] for each in found],
            "top_logprobs": [_by_spelling([*each.top, each]) for each in found],
            "text_offset": [self._start(each) for each in found],
        }

    def _start(self, token: TokenLogprob) -> int:
        piece = self._stream.push(token.token_id)
        before = len(piece) - len(token.token) if piece.endswith(token.token) else 0
        start = self._length + before
        self._length += len(piece)
        return start


def _by_spelling(tokens: Sequence[TokenLogprob]) -> dict[str, float]:
    """The first of those that are spelt alike counts."""
    found: dict[str, float] = {}
    for each in tokens:
        found.setdefault(_spelt(each), likelihood(each)["logprob"])
    return found


def _spelt(token: TokenLogprob) -> str:
    """Its text, or its bytes where they are no text by themselves, as OpenAI writes them: there is no other place."""
    try:
        return bytes(token.bytes).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
