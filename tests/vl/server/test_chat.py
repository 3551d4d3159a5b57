"""`/v1/chat/completions` gives what `model.chat` gives, whole and in chunks."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

import vl
from vl.engine.runner import Runner

from .conftest import ask, events, picture, with_image

SAMPLED = {"temperature": 1.2, "seed": 7, "top_p": 0.9}


def answer(client: TestClient, **body: Any) -> dict[str, Any]:
    found = client.post("/v1/chat/completions", json=body)
    assert found.status_code == 200, found.text
    return found.json()


def said(model: vl.MiniMaxVL, messages: Any, **sampling: Any) -> vl.Generation:
    return model.generate([messages], **sampling)[0]


@pytest.mark.parametrize("sampling", [{}, SAMPLED, {"stop": "e"}, {"stop": ["e", "a"]}, {"max_tokens": 1}])
def test_the_answer_is_the_models(client: TestClient, model: vl.MiniMaxVL, sampling: dict[str, Any]) -> None:
    body = ask(**sampling)
    found = answer(client, **body)
    options = {name: value for name, value in sampling.items() if name != "max_tokens"}
    expected = said(model, body["messages"], max_new_tokens=body["max_tokens"], **options)
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert choice["finish_reason"] == expected.finish_reason
    assert (found["object"], found["model"]) == ("chat.completion", "tiny")
    usage = found["usage"]
    assert usage["prompt_tokens"] == expected.usage.prompt_tokens
    assert usage["completion_tokens"] == len(expected.token_ids)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("sampling", [{}, SAMPLED, {"stop": "e"}])
def test_chunks_make_up_the_answer(client: TestClient, sampling: dict[str, Any]) -> None:
    body = ask(max_tokens=20, **sampling)
    whole = answer(client, **body)
    streamed = client.post(
        "/v1/chat/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}}
    )
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(streamed)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert all(chunk["choices"][0]["finish_reason"] is None and chunk["usage"] is None for chunk in chunks[:-1])
    assert last["choices"] == []
    del last["usage"]["prompt_tokens_details"], whole["usage"]["prompt_tokens_details"]  # of the cache, by then
    assert last["usage"] == whole["usage"]
    assert len({(chunk["id"], chunk["object"]) for chunk in [*chunks, last]}) == 1


def test_a_stream_without_usage_has_none(client: TestClient) -> None:
    chunks = events(client.post("/v1/chat/completions", json=ask(stream=True)))
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)


def test_images_are_seen(client: TestClient, model: vl.MiniMaxVL) -> None:
    messages = with_image(picture(700, 300))
    found = answer(client, **{**ask(), "messages": messages})
    expected = said(model, messages, max_new_tokens=8)
    assert found["choices"][0]["message"]["content"] == expected.text
    assert found["usage"]["prompt_tokens_details"]["image_tokens"] == expected.usage.image_tokens > 0


def test_the_file_of_an_image_is_decoded_once(client: TestClient, model: vl.MiniMaxVL) -> None:
    kept = model.engine.kept_images
    assert kept is not None
    messages = with_image(picture(50, 50, "teal"))
    before = kept.hits
    texts = {answer(client, messages=messages, max_tokens=8)["choices"][0]["message"]["content"] for _ in range(2)}
    assert kept.hits == before + 1
    assert texts == {said(model, with_image(picture(50, 50, "teal")), max_new_tokens=8).text}


def test_a_message_of_the_assistant_is_gone_on_from(client: TestClient, model: vl.MiniMaxVL) -> None:
    messages = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    messages.append({"role": "assistant", "content": "Well, "})
    found = answer(client, messages=messages, max_tokens=8)
    expected = said(model, [{**messages[0], "role": "system"}, *messages[1:]], max_new_tokens=8)
    assert found["choices"][0]["message"]["content"] == expected.text
    assert found["usage"]["prompt_tokens"] == expected.usage.prompt_tokens


def test_several_answers_have_seeds_of_their_own(client: TestClient, model: vl.MiniMaxVL) -> None:
    body = ask(n=3, **SAMPLED)
    found = answer(client, **body)
    expected = [
        said(model, body["messages"], max_new_tokens=8, temperature=1.2, top_p=0.9, seed=7 + i) for i in range(3)
    ]
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in found["choices"]] == [each.text for each in expected]
    assert found["usage"]["prompt_tokens"] == expected[0].usage.prompt_tokens
    assert found["usage"]["completion_tokens"] == sum(len(each.token_ids) for each in expected)
    texts = ["", "", ""]
    for chunk in events(client.post("/v1/chat/completions", json={**body, "stream": True})):
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [each.text for each in expected]


def test_logprobs_are_the_models(client: TestClient, model: vl.MiniMaxVL) -> None:
    body = ask(logprobs=True, top_logprobs=3)
    found = answer(client, **body)["choices"][0]["logprobs"]["content"]
    expected = said(model, body["messages"], max_new_tokens=8, logprobs=True, top_logprobs=3).logprobs
    assert expected is not None
    assert [each["logprob"] for each in found] == pytest.approx([each.logprob for each in expected])
    assert [each["token"] for each in found] == [each.token for each in expected]
    for each in found:
        tops = [top["logprob"] for top in each["top_logprobs"]]
        assert len(tops) == 3
        assert tops == sorted(tops, reverse=True)
        assert math.isclose(each["logprob"], tops[0], abs_tol=1e-5)  # it is greedy
    streamed = events(client.post("/v1/chat/completions", json={**body, "stream": True}))
    parts = [chunk["choices"][0]["logprobs"] for chunk in streamed]
    assert [each["token"] for part in parts if part for each in part["content"]] == [each["token"] for each in found]


def test_nulls_are_as_good_as_nothing(client: TestClient) -> None:
    names = (
        "temperature", "top_p", "top_k", "min_p", "seed", "stop", "n", "presence_penalty", "frequency_penalty",
        "repetition_penalty", "logit_bias", "response_format", "stream", "stream_options", "user", "logprobs",
        "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "max_completion_tokens", "functions", "audio",
    )  # fmt: skip
    body = ask(**dict.fromkeys(names))
    body["messages"][0] |= {"name": None, "tool_calls": None, "function_call": None, "audio": None}
    assert answer(client, **body)["choices"] == answer(client, **ask())["choices"]


def test_what_changes_nothing_is_taken(client: TestClient) -> None:
    body = ask(
        user="me", metadata={"a": "b"}, store=False, service_tier="auto", parallel_tool_calls=True, logit_bias={},
        modalities=["text"], presence_penalty=0, logprobs=False, response_format={"type": "text"}, tools=[],
    )  # fmt: skip
    assert answer(client, **body)["choices"] == answer(client, **ask())["choices"]


def test_a_bias_reaches_the_model(client: TestClient, model: vl.MiniMaxVL) -> None:
    token = model.processor.tokenizer.encode("x")[0]
    assert answer(client, **ask(logit_bias={str(token): 100}))["choices"][0]["message"]["content"] == "x" * 8


def test_a_client_that_leaves_frees_its_place(
    client: TestClient, model: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch, until_idle: Callable[..., None]
) -> None:
    call, steps, left = Runner.__call__, 0, threading.Event()

    def counted(self: Runner, *given: Any) -> Any:
        """From the hundredth step on, the next is made once the client has left."""
        nonlocal steps
        steps += 1
        assert steps < 100 or left.wait(120)
        return call(self, *given)

    monkeypatch.setattr(Runner, "__call__", counted)
    never = {str(end): -100 for end in model.end_ids}
    with client.stream(
        "POST", "/v1/chat/completions", json=ask(stream=True, max_tokens=2000, logit_bias=never)
    ) as found:
        next(found.iter_lines())
    left.set()
    until_idle(model)
    assert steps < 1000, "its answer was written to the end"
