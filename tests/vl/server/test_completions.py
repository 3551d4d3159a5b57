"""`/v1/completions` goes on from texts and tokens as they stand; `/tokenize` says what those are."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

import vl
from preprocessing import Inputs

from .conftest import events, picture, with_image


def complete(client: TestClient, **body: Any) -> dict[str, Any]:
    found = client.post("/v1/completions", json=body)
    assert found.status_code == 200, found.text
    return found.json()


def expected(model: vl.MiniMaxVL, prompt: str | list[int], **sampling: Any) -> vl.Generation:
    ids = model.processor.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    inputs = Inputs(torch.tensor(ids), torch.empty(0, 3, 0, 0, dtype=torch.uint8), [])
    return model.generate([inputs], max_new_tokens=16, **sampling)[0]


@pytest.mark.parametrize("prompt", ["A red circle", [5, 6, 7], "<beginning_of_sentence>user name=user\nHi"])
def test_one_prompt(client: TestClient, model: vl.MiniMaxVL, prompt: str | list[int]) -> None:
    found = complete(client, model="tiny", prompt=prompt)
    answer = expected(model, prompt)
    assert [choice["text"] for choice in found["choices"]] == [answer.text]
    assert found["choices"][0]["finish_reason"] == answer.finish_reason
    assert found["usage"]["prompt_tokens"] == answer.usage.prompt_tokens
    assert found["object"] == "text_completion"


def test_several_prompts_with_several_answers(client: TestClient, model: vl.MiniMaxVL) -> None:
    body = {"prompt": ["A red", "The text"], "n": 2, "temperature": 1.0, "seed": 3, "echo": True}
    texts = [
        prompt + expected(model, prompt, temperature=1.0, seed=seed).text
        for prompt in ("A red", "The text")
        for seed in (3, 4)
    ]
    found = complete(client, **body)
    assert [choice["text"] for choice in found["choices"]] == texts
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    streamed = ["", "", "", ""]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(client.post("/v1/completions", json=body | options))
    for chunk in chunks:
        streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert streamed == texts
    assert last["usage"]["total_tokens"] == found["usage"]["total_tokens"]


def test_logprobs(client: TestClient, model: vl.MiniMaxVL) -> None:
    answer = expected(model, "A red", logprobs=True, top_logprobs=2).logprobs
    assert answer is not None
    found = complete(client, prompt="A red", logprobs=2)["choices"][0]["logprobs"]
    assert found["token_logprobs"] == pytest.approx([each.logprob for each in answer])
    assert all(1 <= len(top) <= 2 for top in found["top_logprobs"])
    parts = [
        chunk["choices"][0]["logprobs"]
        for chunk in events(client.post("/v1/completions", json={"prompt": "A red", "logprobs": 2, "stream": True}))
    ]
    assert [offset for part in parts for offset in part["text_offset"]] == found["text_offset"]


def test_logprobs_of_tokens_within_a_character(client: TestClient) -> None:
    form = {"type": "regex", "pattern": "a🙂b"}
    body = {"prompt": "A red", "logprobs": 1, "response_format": form}
    choice = complete(client, **body)["choices"][0]
    found = choice["logprobs"]
    assert choice["text"] == "a🙂b"
    first, *within, last, _ = found["tokens"]
    assert (first, last) == ("a", "b")
    assert len(within) > 1
    assert "".join(within).replace("bytes:", "") == "".join(f"\\x{byte:02x}" for byte in "🙂".encode())
    assert found["text_offset"] == [0, *[1] * len(within), 2, 3]
    for token, logprob, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert top[token] == logprob, "what was taken is among them, likely or not"
        assert len(top) == 2 or top[token] == max(top.values())
    chunks = events(client.post("/v1/completions", json=body | {"stream": True}))
    offsets = [offset for chunk in chunks for offset in chunk["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == found["text_offset"]


def test_tokens(client: TestClient, model: vl.MiniMaxVL) -> None:
    found = client.post("/tokenize", json={"model": "tiny", "prompt": "A red circle"}).json()
    assert found["tokens"] == model.processor.tokenizer.encode("A red circle")
    assert found["count"] == len(found["tokens"])
    messages = with_image(picture())
    found = client.post("/tokenize", json={"messages": messages}).json()
    inputs = model.processor(messages)
    assert (found["tokens"], found["image_tokens"]) == (inputs.input_ids.tolist(), inputs.image_tokens)
    for wrong in ({}, {"prompt": "a", "messages": messages}, {"prompt": "a", "tools": [{}]}):
        assert client.post("/tokenize", json=wrong).status_code == 400


def test_models_and_metrics(client: TestClient) -> None:
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["tiny", "other"]
    complete(client, prompt="A red", max_tokens=5)
    client.get("/v1/nothing/secret")
    lines = client.get("/metrics").text.splitlines()
    assert 'vl_http_requests_total{path="/v1/completions",status="200"} 1.0' in lines
    assert 'vl_http_requests_total{path="other",status="404"} 1.0' in lines
    assert "vl_generated_tokens_total 5.0" in lines
    assert "vl_time_to_first_token_seconds_count 1.0" in lines
    assert "vl_inter_token_seconds_count 4.0" in lines
    assert 'vl_answers_total{reason="length"} 1.0' in lines
    assert 'vl_cache_slots{state="used"} 0.0' in lines
    assert 'vl_cache_slots{state="free"} 4.0' in lines
    for what in ("pages", "snapshots"):
        found = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith(f"vl_cache_{what}")}
        assert found[f'vl_cache_{what}{{state="used"}}'] == 0
        assert found[f'vl_cache_{what}{{state="kept"}}'] >= 1
    names = (
        "vl_requests_running",
        "vl_requests_waiting",
        "vl_prefix_hits_total",
        "vl_prefix_misses_total",
        "vl_images",
        *(("process_resident_memory_bytes",) if sys.platform == "linux" else ()),
    )
    assert all(any(line.startswith(name) for line in lines) for name in names)
