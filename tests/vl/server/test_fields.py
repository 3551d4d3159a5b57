"""An error about a field of a request names it, for programs; fields of images that cannot be obeyed are errors."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from vl.server.openai import ChatRequest, CompletionRequest

from .conftest import ask, picture, with_image
from .test_limits import CHAT, COMPLETE, refused

TOOLS = [{"type": "function", "function": {"name": "f"}}]
FAULTS: list[tuple[str, str, dict[str, Any]]] = [
    *((CHAT, name, {name: {"a": [5]}}) for name in ChatRequest.model_fields if name != "metadata"),
    *((COMPLETE, name, {name: {"a": [5]}}) for name in CompletionRequest.model_fields),
    (CHAT, "model", {"model": "gpt"}),
    (CHAT, "messages", {"messages": []}),
    (CHAT, "messages", {"messages": with_image("data:,")}),
    (CHAT, "messages", ask("a" * 40_000)),
    (CHAT, "messages", ask("a" * 400_000)),
    (CHAT, "max_tokens", {"max_tokens": 0}),
    (CHAT, "max_completion_tokens", {"max_completion_tokens": 10**30}),
    (CHAT, "n", {"n": 9}),
    (CHAT, "n", {"n": -(10**900)}),
    (CHAT, "temperature", {"temperature": -1}),
    (CHAT, "top_p", {"top_p": 2}),
    (CHAT, "top_k", {"top_k": -1}),
    (CHAT, "min_p", {"min_p": 2}),
    (CHAT, "seed", {"seed": 2**70}),
    (CHAT, "stop", {"stop": ""}),
    (CHAT, "stop", {"stop": ["a"] * 65}),
    (CHAT, "presence_penalty", {"presence_penalty": 3}),
    (CHAT, "frequency_penalty", {"frequency_penalty": -3}),
    (CHAT, "repetition_penalty", {"repetition_penalty": 0}),
    (CHAT, "logit_bias", {"logit_bias": {"x": 1}}),
    (CHAT, "logit_bias", {"logit_bias": {"5": 101}}),
    (CHAT, "logit_bias", {"logit_bias": {"99999999": 1}}),
    (CHAT, "top_logprobs", {"top_logprobs": 3}),
    (CHAT, "top_logprobs", {"logprobs": True, "top_logprobs": 21}),
    (CHAT, "response_format", {"response_format": {"type": "xml"}}),
    (CHAT, "response_format", {"response_format": {"type": "regex", "pattern": "("}}),
    (CHAT, "response_format", {"response_format": {"type": "regex", "pattern": "("}, "tools": TOOLS}),
    (CHAT, "stream_options", {"stream_options": {"include_usage": True}}),
    (CHAT, "stream_options", {"stream": True, "stream_options": {"include_usage": 5}}),
    (CHAT, "tools", {"tools": [5]}),
    (CHAT, "tools", {"tools": [5], "tool_choice": "none"}),
    (CHAT, "tools", {"tools": TOOLS * 1025}),
    (CHAT, "tool_choice", {"tools": TOOLS, "tool_choice": "always"}),
    (CHAT, "tool_choice", {"tool_choice": "required"}),
    (COMPLETE, "prompt", {"prompt": []}),
    (COMPLETE, "prompt", {"prompt": ""}),
    (COMPLETE, "prompt", {"prompt": [-5]}),
    (COMPLETE, "prompt", {"prompt": "<image>"}),
    (COMPLETE, "prompt", {"prompt": "a b " * 10**4}),
    (COMPLETE, "prompt", {"prompt": ["a"] * 9}),
    (COMPLETE, "n", {"n": 9}),
    (COMPLETE, "best_of", {"best_of": 4}),
    (COMPLETE, "logprobs", {"logprobs": 21}),
    (COMPLETE, "max_tokens", {"max_tokens": 0}),
    (COMPLETE, "response_format", {"response_format": {"type": "grammar", "grammar": "start: ("}}),
    ("/tokenize", "prompt", {"prompt": "a", "messages": []}),
    ("/tokenize", "messages", {"messages": [5]}),
    ("/tokenize", "tools", {"messages": ask()["messages"], "tools": [{}]}),
    ("/tokenize", "tools", {"prompt": "a", "tools": TOOLS}),
]


@pytest.mark.parametrize("path", [CHAT, COMPLETE, "/tokenize"])
def test_an_error_about_a_field_names_it(client: TestClient, path: str) -> None:
    """As OpenAI's do, for programs, also where the engine finds it."""
    least = {CHAT: {"messages": ask()["messages"]}, COMPLETE: {"prompt": "a"}, "/tokenize": {}}[path]
    for _, field, body in (fault for fault in FAULTS if fault[0] == path):
        found = client.post(path, json=least | body)
        assert found.status_code == (404 if body == {"model": "gpt"} else 400), (body, found.text)
        assert found.json()["error"]["param"] == field, (body, found.text)


def test_a_prompt_that_is_too_long_has_openais_code(client: TestClient) -> None:
    """By which LangChain and others tell it."""
    for path, body in ((CHAT, ask("a" * 40_000)), (CHAT, ask("a" * 400_000)), (COMPLETE, {"prompt": "a" * 40_000})):
        found = refused(client, body, 400, "more than the 4,096", path)
        assert found.json()["error"]["code"] == "context_length_exceeded"


def test_less_detail_is_refused(client: TestClient) -> None:
    for detail in ("low", 5, ["low"]):
        inside: dict[str, Any] = {"type": "image_url", "image_url": {"url": picture(), "detail": detail}}
        beside: dict[str, Any] = {"type": "image_url", "image_url": {"url": picture()}, "detail": detail}
        for part in (inside, beside):
            refused(client, {"messages": [{"role": "user", "content": [part]}]}, 400, "detail")


def test_what_would_change_how_an_image_is_read_is_refused(client: TestClient) -> None:
    image: dict[str, Any] = {"type": "image_url", "image_url": {"url": picture()}}
    for part, said in (
        (image | {"max_pixels": 5}, "^max_pixels of an image is not known"),
        ({"type": "image_url", "image_url": {"url": picture(), "crop": [1]}}, "^crop of an image is not known"),
        (image | {"image": picture()}, "^an image has image and image_url, of which one is read"),
    ):
        refused(client, {"messages": [{"role": "user", "content": [part]}]}, 400, said)
    taken = image | {"cache_control": {"type": "ephemeral"}, "detail": "high", "max_pixels": None}
    assert client.post(CHAT, json=ask() | {"messages": [{"role": "user", "content": [taken]}]}).status_code == 200
