"""From requests to prompts that the engine has checked. All of it is work for a thread beside the event loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from preprocessing import Conversation, Inputs, Processor
from preprocessing.tools import FUNCTION_CALL
from vl.engine import Request, SamplingParams, Timings
from vl.errors import InputError
from vl.server.config import ServerConfig
from vl.server.errors import ApiError
from vl.server.images import check_details, with_images
from vl.server.openai import PLAIN, ChatRequest, CompletionRequest, ModelRequest, Sampled, TokenizeRequest

if TYPE_CHECKING:
    from vl.model import MiniMaxVL


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
        self._check_answers(request.answers)
        _ = request.with_usage
        self._model.engine.check(self._params(request, 1))  # before images are read
        inputs, offered = self._conversation(request.messages, request.tools, request.tool_choice)
        begun = self._begin_call(request) if request.tool_choice is not None else []
        if begun and request.response_format not in (None, PLAIN["response_format"]):
            raise InputError("tool_choice asks for a call, and response_format for an answer: give one of them")
        if begun:
            inputs = Inputs(torch.cat((inputs.input_ids, torch.tensor(begun))), inputs.tiles, inputs.grids)
        timings = Timings(preprocess=time.perf_counter() - start)
        most = 1 if request.parallel_tool_calls is False else None
        return Prepared(self._requests(request, inputs, timings), offered, begun, most)

    def completion(self, request: CompletionRequest) -> Prepared:
        """Raises as `chat` does."""
        self._check(request)
        prompts = request.prompts
        if not prompts:
            raise InputError("prompt is an empty list: give at least one")
        if request.best_of not in (None, request.answers):
            raise InputError("best_of is not supported beside n: leave it out")
        self._check_answers(len(prompts) * request.answers)
        _ = request.with_usage, self._params(request, 1)
        inputs = [self._raw(prompt) for prompt in prompts]
        image = self._model.config.image_token_index
        if image is not None and any(bool((each.input_ids == image).any()) for each in inputs):
            raise InputError(
                f"prompt has the token {image}, in whose place an image stands: ask about images at "
                "/v1/chat/completions"
            )
        made = [self._requests(request, each, Timings()) for each in inputs]
        prepared = Prepared([each for requests in made for each in requests])
        for each in prepared.requests:
            each.markers = None  # a text that goes on has no answer apart from what is thought
        return prepared

    def tokenize(self, request: TokenizeRequest) -> dict[str, Any]:
        """What `/tokenize` answers. Raises as `chat` does."""
        self._check(request)
        if (request.prompt is None) == (request.messages is None):
            raise InputError("give either prompt or messages")
        if request.messages is not None:
            inputs, _ = self._conversation(request.messages, request.tools, None)
        elif request.tools is not None:
            raise InputError("tools goes with messages")
        else:
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

    def _check_answers(self, count: int) -> None:
        if not 1 <= count <= self._config.max_answers:
            raise InputError(f"{count} answers: a request may ask for 1 to {self._config.max_answers}")

    def _check_length(self, characters: int) -> None:
        """Refuse at once what is too long however few tokens it takes: to count those of megabytes takes seconds."""
        most = self._config.max_tokens * self.processor.tokenizer.longest
        if characters > most:
            raise InputError(
                f"a text of {characters:,} characters is more than the {self._config.max_tokens:,} tokens of a "
                "request: shorten it"
            )

    def _conversation(self, messages: list[Any], tools: Any, choice: Any) -> tuple[Inputs, bool]:
        """Inputs, and whether functions may be called."""
        if len(messages) > self._config.max_tokens:
            raise InputError(
                f"{len(messages):,} messages are more than the {self._config.max_tokens:,} tokens of a request"
            )
        check_details(messages)
        for number, tool in enumerate(tools or (), 1):
            if isinstance(tool, dict) and not _name_of(tool):
                raise ApiError(400, f"tool {number} needs a name", param="tools")
        offered = None if choice == "none" else tools or None
        conversation = Conversation.of([_renamed(message) for message in messages], offered)
        self._check_length(sum(map(len, conversation.texts())))
        conversation = with_images(conversation, self._config)
        kept = self._model.engine.kept_images
        return self.processor(conversation, continue_final_message=True, kept=kept), offered is not None

    def _raw(self, prompt: str | list[int]) -> Inputs:
        """The text or tokens as they stand: control tokens where they are written out."""
        if isinstance(prompt, str):
            self._check_length(len(prompt))
            prompt = self.processor.tokenizer.encode(prompt)
        size = self._model.config.text.vocab_size
        if prompt and not 0 <= min(prompt) <= max(prompt) < size:
            raise InputError(f"prompt: token ids must be whole numbers from 0 to {size - 1}")
        return Inputs(torch.tensor(prompt, dtype=torch.int64), torch.empty(0, 3, 0, 0, dtype=torch.uint8), [])

    def _begin_call(self, request: ChatRequest) -> list[int]:
        """Tokens with which the model begins a call, if it has to call a function."""
        choice, tokenizer = request.tool_choice, self.processor.tokenizer
        if choice in ("auto", "none"):
            return []
        names = [name for tool in request.tools or () if (name := _name_of(tool)) is not None]
        name = None
        if choice != "required":
            name = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
            name = name.get("name") if isinstance(name, dict) else None
            if not isinstance(name, str):
                raise InputError(
                    'tool_choice must be "none", "auto", "required" or {"type": "function", "function": {"name": '
                    f"...}}}}, not {choice!r:.80}"
                )
        if not names or name not in (None, *names):
            raise InputError(f"tool_choice asks for {name or 'a function'!r:.80}, which is not among the tools")
        token = tokenizer.token_id(FUNCTION_CALL)
        if token is None:
            raise InputError(f"tool_choice: this model cannot be made to call functions, as it has no {FUNCTION_CALL}")
        begun = "```typescript\nfunctions." + ("" if name is None else f"{name}(")
        return [token, *tokenizer.encode_plain(begun)]

    def _params(self, request: Sampled, prompt: int) -> SamplingParams:
        """How answers to a prompt of so many tokens are written."""
        config, wanted = self._config, request.new_tokens
        if wanted is not None and not 1 <= wanted <= config.max_new_tokens:
            name = request.limit_name
            raise ApiError(400, f"{name} must be 1 to {config.max_new_tokens:,} here, not {wanted:,}", param=name)
        left = config.max_tokens - prompt
        if left < (wanted or 1):
            raise InputError(
                f"a prompt of {prompt:,} tokens and an answer of {wanted or 1:,} are more than the "
                f"{config.max_tokens:,} of a request: shorten it, or ask for fewer"
            )
        return request.params(min(config.max_new_tokens, left) if wanted is None else wanted)

    def _requests(self, request: Sampled, inputs: Inputs, timings: Timings) -> list[Request]:
        """One for each answer."""
        return self._model.engine.prepare_answers(inputs, self._params(request, len(inputs)), timings)


def _renamed(message: Any) -> Any:
    """A message with the role that this project knows it by."""
    if isinstance(message, dict) and message.get("role") == "developer":
        return {**message, "role": "system"}
    return message


def _name_of(tool: Any) -> str | None:
    """Of a function's description, OpenAI's or the model card's."""
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else None
