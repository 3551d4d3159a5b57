"""Functions over HTTP: described to the model, called by it, and answered, in the released template's form."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

import vl

from .conftest import ask, events

TOOL = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "default": None}}}
OTHER = {"type": "function", "function": {"name": "get_date", "parameters": {"type": "object"}}}
CALLS = '<function_call>```typescript\nfunctions.get_time({"city": "Oslo"})\nfunctions.get_date({})\n```'
Say = Callable[[str], None]


def message(client: TestClient, **body: Any) -> tuple[dict[str, Any], str]:
    found = client.post("/v1/chat/completions", json=body)
    assert found.status_code == 200, found.text
    choice = found.json()["choices"][0]
    return choice["message"], choice["finish_reason"]


def functions(calls: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    assert all(call["type"] == "function" and call["id"].startswith("call_") for call in calls)
    assert len({call["id"] for call in calls}) == len(calls)
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


EXPECTED = [("get_time", {"city": "Oslo"}), ("get_date", {})]


@pytest.mark.parametrize("before", ["", "Let me look. "])
def test_calls_come_as_tool_calls(client: TestClient, says: Say, before: str) -> None:
    says(before + CALLS)
    body = ask(tools=[TOOL, OTHER], max_tokens=200)
    found, reason = message(client, **body)
    assert (found["content"], reason) == (before or None, "tool_calls")
    assert functions(found["tool_calls"]) == EXPECTED

    deltas = [
        chunk["choices"][0] for chunk in events(client.post("/v1/chat/completions", json={**body, "stream": True}))
    ]
    assert "".join(choice["delta"].get("content", "") for choice in deltas) == before
    called = [call for choice in deltas for call in choice["delta"].get("tool_calls", [])]
    assert [call.pop("index") for call in called] == [0, 1]
    assert functions(called) == EXPECTED
    assert deltas[-1]["finish_reason"] == "tool_calls"


def test_a_call_that_is_cut_off_says_so(client: TestClient, says: Say) -> None:
    says(CALLS)
    found, reason = message(client, **ask(tools=[TOOL], max_tokens=40))
    assert reason == "length"
    assert found["tool_calls"][0]["function"]["name"] == "get_time"


@pytest.mark.parametrize(
    ("stop", "arguments", "expected"),
    [("Oslo", ['{"city": "'], "stop"), (["x", ": "], ['{"city"'], "stop"), (")", ['{"city": "Oslo"}'], "stop"),
     ("({", [], "stop"),
     ("get_date", ['{"city": "Oslo"}'], "tool_calls"), ("\n```", ['{"city": "Oslo"}', "{}"], "tool_calls")],
)  # fmt: skip
def test_stop_strings_end_calls(client: TestClient, says: Say, stop: Any, arguments: list[str], expected: str) -> None:
    """And the reason is no call's where its arguments are cut."""
    says(CALLS)
    body = ask(tools=[TOOL, OTHER], max_tokens=200, stop=stop)
    found, reason = message(client, **body)
    calls = found.get("tool_calls", [])
    assert ([call["function"]["arguments"] for call in calls], reason) == (arguments, expected)
    assert not found["content"]
    deltas = [
        chunk["choices"][0] for chunk in events(client.post("/v1/chat/completions", json={**body, "stream": True}))
    ]
    called = [call for choice in deltas for call in choice["delta"].get("tool_calls", [])]
    assert [call["function"]["arguments"] for call in called] == arguments
    assert (deltas[-1]["finish_reason"], "".join(each["delta"].get("content", "") for each in deltas)) == (expected, "")


@pytest.mark.parametrize(("said", "choice"), [(CALLS, "auto"), ('get_time({"city": "Oslo"})\n```', "required")])
def test_what_is_cut_before_it_calls_anything_is_no_text(client: TestClient, says: Say, said: str, choice: str) -> None:
    says(said)
    body = ask(tools=[TOOL], tool_choice=choice, max_tokens=3)
    found, reason = message(client, **body)
    assert (found["content"], "tool_calls" in found, reason) == ("", False, "length")
    streamed = events(client.post("/v1/chat/completions", json={**body, "stream": True}))
    assert not any(chunk["choices"][0]["delta"].get("content") for chunk in streamed)


def test_arguments_are_text_that_can_be_sent_back(client: TestClient, says: Say) -> None:
    says('<function_call>```typescript\nfunctions.get_time({"city": "Oslo \\ud83d", "at": "\\ud83d\\ude42"})\n```')
    body = ask(tools=[TOOL], max_tokens=200)
    found, _ = message(client, **body)
    streamed = events(client.post("/v1/chat/completions", json={**body, "stream": True}))
    called = [call for chunk in streamed for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    for call in (*found["tool_calls"], *called):
        assert json.loads(call["function"]["arguments"].encode()) == {"city": "Oslo \ufffd", "at": "🙂"}


def test_one_call_at_most_where_no_more_are_wanted(client: TestClient, says: Say) -> None:
    says(CALLS)
    body = ask(tools=[TOOL, OTHER], max_tokens=200, parallel_tool_calls=False)
    found, reason = message(client, **body)
    assert (functions(found["tool_calls"]), reason) == (EXPECTED[:1], "tool_calls")
    streamed = events(client.post("/v1/chat/completions", json={**body, "stream": True}))
    called = [call for chunk in streamed for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert [call.pop("index") for call in called] == [0]
    assert functions(called) == EXPECTED[:1]


def test_no_call_is_text(client: TestClient, says: Say) -> None:
    says("No <function_call>indeed")
    body = ask(tools=[TOOL], max_tokens=200)
    assert message(client, **body) == ({"role": "assistant", "content": "No indeed", "refusal": None}, "stop")
    streamed = events(client.post("/v1/chat/completions", json={**body, "stream": True}))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed) == "No indeed"


@pytest.mark.parametrize("fields", [{}, {"tools": [TOOL], "tool_choice": "none"}])
def test_without_tools_there_are_no_calls(client: TestClient, says: Say, fields: dict[str, Any]) -> None:
    says(CALLS)
    found, reason = message(client, **ask(max_tokens=200, **fields))
    assert ("tool_calls" in found, reason) == (False, "stop")


def test_a_function_that_has_to_be_called_is(client: TestClient, says: Say) -> None:
    says('{"city": "Oslo"})\n```')
    body = ask(tools=[TOOL, OTHER], tool_choice={"type": "function", "function": {"name": "get_date"}}, max_tokens=50)
    found, reason = message(client, **body)
    assert (found["content"], reason) == (None, "tool_calls")
    assert functions(found["tool_calls"]) == [("get_date", {"city": "Oslo"})]
    says('get_time({"city": "Oslo"})\n```')
    found, _ = message(client, **{**body, "tool_choice": "required"})
    assert functions(found["tool_calls"]) == EXPECTED[:1]
    assert found["content"] is None


def test_the_prompt_is_the_templates(client: TestClient, model: vl.MiniMaxVL) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "What time is it?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": '"12:30"'},
    ]
    found = client.post("/tokenize", json={"messages": messages, "tools": [TOOL]}).json()
    assert found["tokens"] == model.processor(messages, tools=[TOOL]).input_ids.tolist()
    text = model.processor.tokenizer.decode(found["tokens"], skip_special_tokens=False)
    assert 'system function_response=functions\n{"name": "get_time", "response": "12:30"}' in text
    assert "<function_call>```typescript\nfunctions.get_time({})\n```" in text
    assert f"system function_setting=functions\n{json.dumps(TOOL)}<end_of_sentence>" in text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tool_choice": "required"}, "not among the tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sing"}}}, "'sing'.*not among"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom"}}, "tool_choice must be"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice must be"),
        ({"tools": [{"type": "custom", "name": "f"}]}, 'tool 1 must be of "type": "function", not \'custom\''),
        ({"tools": [{"function": {"name": "f", "parameters": "x"}}]}, "tool 1: parameters must be a JSON schema"),
        ({"tools": [5]}, "tool 1 must be a JSON object"),
        ({"tools": "get_time"}, "tools"),
        ({"functions": [TOOL["function"]]}, "functions"),
    ],
)
def test_what_cannot_be_called_is_refused(client: TestClient, fields: dict[str, Any], said: str) -> None:
    found = client.post("/v1/chat/completions", json=ask(**fields))
    assert found.status_code == 400
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(found.json()["error"]["message"])
