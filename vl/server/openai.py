"""Requests as OpenAI's API has them. A field that would change an answer is obeyed or refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from vl.engine import SamplingParams
from vl.engine.params import MOST_TOP_LOGPROBS
from vl.errors import InputError

_PARTS = {
    "type": "array",
    "items": {
        "anyOf": [
            {
                "type": "object",
                "required": ["type", "text"],
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
            },
            {
                "type": "object",
                "required": ["type", "image_url"],
                "properties": {
                    "type": {"const": "image_url"},
                    "image_url": {"type": "object", "required": ["url"], "properties": {"url": {"type": "string"}}},
                },
            },
        ]
    },
}
_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool", "function"]},
            "content": {"anyOf": [{"type": "string"}, _PARTS, {"type": "null"}]},
            "name": {"type": "string"},
            "tool_calls": {"type": "array", "items": {"type": "object"}},
            "tool_call_id": {"type": "string"},
        },
    },
}
_OBJECTS = {"type": "array", "items": {"type": "object"}}

Messages = Annotated[list[Any], WithJsonSchema(_MESSAGES)]
"""What they hold is checked by `preprocessing.Conversation`."""
Tools = Annotated[list[Any], WithJsonSchema(_OBJECTS)]

_ID = re.compile("0|[1-9][0-9]{0,30}")

CHOICES = {
    "stop": "a string or a list of strings",
    "tool_choice": "a string or an object",
    "prompt": "a string, a list of strings, a list of token ids or a list of such lists",
}
"""What fields may be that take several forms."""

PLAIN: dict[str, Any] = {
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": False,
    "top_logprobs": 0,
    "response_format": {"type": "text"},
}
"""Values that change nothing."""


class ModelRequest(BaseModel):
    """What every request may have. A field that is null counts as absent."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = Field(None, description="What /v1/models calls it; the one that is served by default.")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


class Sampled(ModelRequest):
    """How answers are written; `vl.SamplingParams` says what the values may be."""

    max_tokens: int | None = Field(None, description="Tokens of an answer at most.")
    temperature: float | None = Field(None, description="0, the default, takes the most likely token.")
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = Field(None, description="Answers.")
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    user: str | None = Field(None, description="Makes no difference, as all below.")

    _sampling: ClassVar[tuple[str, ...]] = (
        "n",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "stop",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "response_format",
    )

    @property
    def limit_name(self) -> str:
        """By which the request limits the tokens of an answer."""
        return "max_tokens"

    @property
    def prompt_name(self) -> str:
        """By which the request has what is answered."""
        return "prompt"

    @property
    def new_tokens(self) -> int | None:
        """Tokens of an answer at most, if the request says so."""
        return self.max_tokens

    @property
    def answers(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def likelihoods(self) -> dict[str, Any]:
        """What is to be told of how likely tokens were, as `SamplingParams` has it."""
        return {}

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the tokens' counts. Raises InputError for options that are not known."""
        options = {name: value for name, value in (self.stream_options or {}).items() if value is not None}
        if options and not self.stream:
            raise InputError("stream_options goes with stream: true")
        unknown = sorted(set(options) - {"include_usage", "include_obfuscation"})
        if unknown or options.get("include_obfuscation") not in (None, False):
            raise InputError(f"stream_options may have include_usage alone, not {', '.join(unknown or options)}")
        wanted = options.get("include_usage", False)
        if not isinstance(wanted, bool):
            raise InputError("stream_options.include_usage must be true or false")
        return wanted

    def params(self, max_new_tokens: int) -> SamplingParams:
        """For the engine. Raises InputError naming what is out of range, or what this engine does not have."""
        given: dict[str, Any] = {name: getattr(self, name, None) for name in self._sampling}
        given |= self.likelihoods
        given["logit_bias"] = None if self.logit_bias is None else _biases(self.logit_bias)
        sampling = {n: value for n, value in given.items() if value is not None and value != PLAIN.get(n)}
        missing = sorted(set(sampling) - {field.name for field in fields(SamplingParams)})
        if missing:
            raise InputError(f"{', '.join(missing)} is not supported: leave it out")
        if self.seed is not None:
            sampling["seed"] = self.seed % 2**64 if -(2**63) <= self.seed < 0 else self.seed
        return SamplingParams.of(sampling | {"max_new_tokens": max_new_tokens})


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    """By token id. One that is written in two ways would have one of its values dropped."""
    if any(not _ID.fullmatch(token) for token in given):
        raise InputError(f"logit_bias: its names must be token ids, such as {{'42': -100}}, not {given!r:.80}")
    return {int(token): bias for token, bias in given.items()}


class ChatRequest(Sampled):
    """Of `/v1/chat/completions`."""

    messages: Messages
    max_completion_tokens: int | None = Field(None, description="The newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Tools | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = Field(None, description="False: an answer calls one function at most.")
    modalities: list[Literal["text"]] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def likelihoods(self) -> dict[str, Any]:
        return {"logprobs": self.logprobs, "top_logprobs": self.top_logprobs}

    @property
    def limit_name(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def prompt_name(self) -> str:
        return "messages"

    @property
    def new_tokens(self) -> int | None:
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
            raise InputError("max_tokens and max_completion_tokens are two names of one limit: give one of them")
        return given.pop() if given else None


class CompletionRequest(Sampled):
    """Of `/v1/completions`: text, or token ids, that is gone on from as it stands."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = Field(None, description="Begin each answer with its prompt.")
    logprobs: int | None = None
    best_of: int | None = Field(None, description="As n; other values are not supported.")

    @property
    def new_tokens(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def likelihoods(self) -> dict[str, Any]:
        if self.logprobs is not None and self.echo:
            raise InputError("logprobs are not told of prompts: leave echo out")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_TOP_LOGPROBS:
            raise InputError(f"logprobs must be a whole number, 0 to {MOST_TOP_LOGPROBS}, not {self.logprobs}")
        return {} if self.logprobs is None else {"logprobs": True, "top_logprobs": self.logprobs}

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each by itself."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and all(isinstance(token, int) for token in self.prompt):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


class TokenizeRequest(ModelRequest):
    """Of `/tokenize`: a text, or a conversation as the model is given it."""

    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools | None = None


FIELDS = frozenset(name for kind in (ChatRequest, CompletionRequest, TokenizeRequest) for name in kind.model_fields)
"""Of all requests, by name."""
