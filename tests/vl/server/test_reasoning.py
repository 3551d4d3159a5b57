"""What is thought before an answer comes as `reasoning_content`, as vLLM's server gives it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

import vl

from .conftest import ask, events

SAID = "<think>A 12, B 30</think>It is 42."
Say = Callable[[str], None]


@pytest.fixture
def model(thinking_model: vl.MiniMaxVL) -> vl.MiniMaxVL:
    """Of the server in these tests."""
    return thinking_model


def test_the_server_gives_reasoning_content(client: TestClient, model: vl.MiniMaxVL, says: Say) -> None:
    says(SAID)
    body = ask(max_tokens=200)
    whole = client.post("/v1/chat/completions", json=body).json()
    chunks = events(client.post("/v1/chat/completions", json={**body, "stream": True, "logprobs": True}))
    message, usage = whole["choices"][0]["message"], whole["usage"]
    assert (message["content"], message["reasoning_content"]) == ("It is 42.", "A 12, B 30")
    thought = len(model.processor.tokenizer.encode("<think>A 12, B 30</think>"))
    assert usage["completion_tokens_details"] == {"reasoning_tokens": thought}
    assert usage["completion_tokens"] > thought
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    for key, expected in (("content", "It is 42."), ("reasoning_content", "A 12, B 30")):
        assert "".join(delta.get(key, "") for delta in deltas) == expected
    told = [each for chunk in chunks for each in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert len(told) == usage["completion_tokens"]


def test_a_completion_is_all_that_is_written(client: TestClient, says: Say) -> None:
    says(SAID)
    body = {"prompt": "<beginning_of_sentence>ai name=assistant\n", "max_tokens": 200, "temperature": 0}
    whole = client.post("/v1/completions", json=body).json()
    chunks = events(client.post("/v1/completions", json={**body, "stream": True}))
    for text in (whole["choices"][0]["text"], "".join(chunk["choices"][0]["text"] for chunk in chunks)):
        assert text == "A 12, B 30It is 42."


def test_an_empty_thought_of_any_role_is_none(client: TestClient, says: Say) -> None:
    says(SAID)
    body = ask(max_tokens=200)
    body["messages"][0]["reasoning_content"] = ""
    assert client.post("/v1/chat/completions", json=body).status_code == 200
