"""From requests to prompts that the engine has checked. All of it is work for a thread beside the event loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from preprocessing import Conversation, Inputs, Processor
from preprocessing.tools import FUNCTION_CALL
from vl.engine import Request, SamplingParams, Timings
from vl.engine.calls import Calls, is_strict, name_of
from vl.errors import InputError
from vl.server.config import ServerConfig
from vl.server.errors import ApiError, refusing
from vl.server.images import check_image_parts, with_images
from vl.server.openai import PLAIN, ChatRequest, CompletionRequest, ModelRequest, Sampled, TokenizeRequest

if TYPE_CHECKING:
    from vl.model import MiniMaxVL

_MANY = 10**18  # from there on a number is told of by its digits


@dataclass(frozen=True)
class Prepared:
    """Requests that wait to be queued.

    Attributes:
        requests: as many as answers were asked for, those to one prompt one after the other.
        tools: whether functions may be called in them. `begun`: tokens of the prompt with which a call has begun.
        most_calls: of an answer; None: as many as it makes.
    """

    requests: list[Request]
    tools: bool = False
    begun: Sequence[int] = ()
    most_calls: int | None = None


class Prompts:
    """Makes prompts for one model, within a server's limits."""

    def __init__(self, model: MiniMaxVL, config: ServerConfig) -> None:
        self._model, self._config = model, config

    @property
    def processor(self) -> Processor:
        return self._model.processor

    def chat(self, request: ChatRequest) -> Prepared:
        """Raises ApiError, InputError or ImageError, naming what cannot be used."""
        start = time.perf_counter()
        self._check(request)
        self._check_answers(request)
        _ = request.with_usage
        calls = self._calls(request)
        self._model.engine.check(self._params(request, 1, calls))  # before images are read
        offered = None if request.tool_choice == "none" else request.tools or None
        with refusing("messages"):
            inputs, begun = self._conversation(request.messages, offered), self._begun(calls)
            if begun:
                inputs = Inputs(torch.cat((inputs.input_ids, torch.tensor(begun))), inputs.tiles, inputs.grids)
            timings = Timings(preprocess=time.perf_counter() - start)
            requests = self._requests(request, inputs, timings, calls)
        most = 1 if request.parallel_tool_calls is False else None
        return Prepared(requests, offered is not None, begun, most)

    def completion(self, request: CompletionRequest) -> Prepared:
        """Raises as `chat` does."""
        self._check(request)
        if request.best_of not in (None, request.answers):
            raise InputError("best_of is not supported beside n: leave it out")
        self._check_answers(request, len(request.prompts))
        _ = request.with_usage
        self._model.engine.check(self._params(request, 1))
        with refusing("prompt"):
            inputs = [self._text_alone(prompt) for prompt in request.prompts]
            made = [self._requests(request, each, Timings()) for each in inputs]
        prepared = Prepared([each for requests in made for each in requests])
        for each in prepared.requests:
            each.markers = None  # a text that goes on has no answer apart from what is thought
        return prepared

    def tokenize(self, request: TokenizeRequest) -> dict[str, Any]:
        """What `/tokenize` answers. Raises as `chat` does."""
        self._check(request)
        if (request.prompt is None) == (request.messages is None):
            raise ApiError(400, "give either prompt or messages", param="prompt")
        if request.messages is not None:
            with refusing("tools"):
                Calls.of(request.tools or (), 0)
            with refusing("messages"):
                inputs = self._conversation(request.messages, request.tools)
        elif request.tools is not None:
            raise InputError("tools goes with messages")
        else:
            with refusing("prompt"):
                inputs = self._raw(request.prompt or "")
        tokens = inputs.input_ids.tolist()
        return {
            "tokens": tokens,
            "count": len(tokens),
            "image_tokens": inputs.image_tokens,
            "max_model_len": self._config.max_tokens,
        }

    def _check(self, request: ModelRequest) -> None:
        if request.model is not None and request.model not in self._config.names:
            raise ApiError(
                404,
                f"there is no model {request.model!r:.100} here: there is {', '.join(self._config.names)}",
                param="model",
                code="model_not_found",
            )

    def _check_answers(self, request: Sampled, prompts: int = 1) -> None:
        most, count = self._config.max_answers, prompts * request.answers
        if not 1 <= request.answers <= most:
            raise ApiError(400, f"n must be 1 to {most:,} here, not {_shown(request.answers)}", param="n")
        if count > most:
            raise ApiError(400, f"{count:,} answers: a request may ask for 1 to {most:,}", param="prompt")
        if not prompts:
            raise ApiError(400, "prompt is an empty list: give at least one", param="prompt")

    def _check_length(self, characters: int, field: str) -> None:
        """Refuse at once what is too long however few tokens it takes: to count those of megabytes takes seconds."""
        most = self._config.max_tokens
        if characters > most * self.processor.tokenizer.longest:
            raise _too_long(f"a text of {characters:,} characters is more than the {most:,} tokens", field)

    def _conversation(self, messages: list[Any], tools: Any) -> Inputs:
        if len(messages) > self._config.max_tokens:
            what = f"{len(messages):,} messages are more than the {self._config.max_tokens:,} tokens"
            raise _too_long(what, "messages")
        check_image_parts(messages)
        conversation = Conversation.of([_renamed(message) for message in messages], tools)
        self._check_length(sum(map(len, conversation.texts())), "messages")
        conversation = with_images(conversation, self._config)
        kept = self._model.engine.kept_images
        return self.processor(conversation, continue_final_message=True, kept=kept)

    def _text_alone(self, prompt: str | list[int]) -> Inputs:
        """`_raw` of what has no place for an image."""
        inputs, image = self._raw(prompt), self._model.config.image_token_index
        if image is not None and bool((inputs.input_ids == image).any()):
            raise InputError(
                f"prompt has the token {image}, in whose place an image stands: ask about images at "
                "/v1/chat/completions"
            )
        return inputs

    def _raw(self, prompt: str | list[int]) -> Inputs:
        """The text or tokens as they stand: control tokens where they are written out."""
        if isinstance(prompt, str):
            self._check_length(len(prompt), "prompt")
            prompt = self.processor.tokenizer.encode(prompt)
        size = self._model.config.text.vocab_size
        if prompt and not 0 <= min(prompt) <= max(prompt) < size:
            raise InputError(f"prompt: token ids must be whole numbers from 0 to {size - 1}")
        return Inputs(torch.tensor(prompt, dtype=torch.int64), torch.empty(0, 3, 0, 0, dtype=torch.uint8), [])

    def _calls(self, request: ChatRequest) -> Calls | None:
        """Which an answer may be, or has to be; None where that is left to the model, or there are none."""
        named, tools = _named(request), request.tools or []
        token = self.processor.tokenizer.token_id(FUNCTION_CALL)
        if token is None and named is not None:
            raise InputError(f"tool_choice: this model cannot be made to call functions, as it has no {FUNCTION_CALL}")
        with refusing("tools"):
            several = request.parallel_tool_calls is not False
            calls = Calls.of(tools, token or 0, several=several, named=named, markers=self.processor.reasoning)
        if token is None or request.tool_choice == "none" or not tools:
            return None
        held = named is not None or request.response_format not in (None, PLAIN["response_format"])
        return calls if held or any(map(is_strict, tools)) else None

    def _begun(self, calls: Calls | None) -> list[int]:
        """Tokens with which the model begins a call, if it has to call a function."""
        if calls is None or calls.named is None:
            return []
        return [calls.token, *self.processor.tokenizer.encode_plain(calls.begun)]

    def _params(self, request: Sampled, prompt: int, calls: Calls | None = None) -> SamplingParams:
        """How answers to a prompt of so many tokens are written."""
        config, wanted = self._config, request.new_tokens
        if wanted is not None and not 1 <= wanted <= config.max_new_tokens:
            name = request.limit_name
            raise ApiError(400, f"{name} must be 1 to {config.max_new_tokens:,} here, not {_shown(wanted)}", param=name)
        left = config.max_tokens - prompt
        if left < (wanted or 1):
            both = f"a prompt of {prompt:,} tokens and an answer of {wanted or 1:,}"
            raise _too_long(f"{both} are more than the {config.max_tokens:,}", request.prompt_name)
        params = request.params(min(config.max_new_tokens, left) if wanted is None else wanted)
        return replace(params, calls=calls)

    def _requests(
        self, request: Sampled, inputs: Inputs, timings: Timings, calls: Calls | None = None
    ) -> list[Request]:
        """One for each answer."""
        return self._model.engine.prepare_answers(inputs, self._params(request, len(inputs), calls), timings)


def _too_long(what: str, field: str) -> ApiError:
    message = f"{what} of a request: shorten it, or ask for fewer"
    return ApiError(400, message, param=field, code="context_length_exceeded")


def _shown(number: int) -> str:
    return f"{number:,}" if abs(number) < _MANY else f"a number of {len(str(abs(number)))} digits"


def _renamed(message: Any) -> Any:
    """A message with the role that this project knows it by."""
    if isinstance(message, dict) and message.get("role") == "developer":
        return {**message, "role": "system"}
    return message


def _named(request: ChatRequest) -> str | None:
    """The function that has to be called, "" for any, None where none has to be. Raises InputError."""
    choice = request.tool_choice
    if choice in (None, "auto", "none"):
        return None
    names = [name_of(tool) for tool in request.tools or ()]
    name: Any = ""
    if choice != "required":
        found = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
        name = found.get("name") if isinstance(found, dict) else None
        if not isinstance(name, str):
            raise InputError(
                'tool_choice must be "none", "auto", "required" or {"type": "function", "function": {"name": '
                f"...}}}}, not {choice!r:.80}"
            )
    if not names or (choice != "required" and name not in names):
        raise InputError(f"tool_choice asks for {name or 'a function'!r:.80}, which is not among the tools")
    return str(name)
