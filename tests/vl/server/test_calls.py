"""Answers that are held to a form where functions may be called too: one or the other, as OpenAI's client has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import openai
import pytest
from starlette.testclient import TestClient

import vl
from preprocessing.tools import FUNCTION_CALL

from .test_formats import BY_SCHEMA, SCHEMA

POINT = {
    "type": "object",
    "properties": {"x": {"enum": [1, 2]}, "name": {"enum": ["a", "b ) c"]}},
    "required": ["x", "name"],
    "additionalProperties": False,
}
STRICT = {"type": "function", "function": {"name": "go-to.2", "parameters": POINT, "strict": True}}
LOOSE = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
Ask = Callable[..., Any]


@pytest.fixture
def ask(client: TestClient) -> Ask:
    """One answer, which is the same when it is streamed."""
    served = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", http_client=client, max_retries=0)

    def ask(**body: Any) -> Any:
        given: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Go"}], "max_tokens": 400, **body}
        whole = served.chat.completions.create(**given).choices[0]
        chunks = [chunk.choices[0] for chunk in served.chat.completions.create(**given, stream=True)]
        assert chunks[-1].finish_reason == whole.finish_reason
        assert "".join(chunk.delta.content or "" for chunk in chunks) == (whole.message.content or "")
        assert [call for chunk in chunks for call in called(chunk.delta)] == called(whole.message)
        return whole

    return ask


def called(message: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


def biased(model: vl.MiniMaxVL, bias: float) -> dict[str, Any]:
    """Has the model, which knows nothing, begin a call or not."""
    token = model.processor.tokenizer.token_id(FUNCTION_CALL)
    return {"logit_bias": {str(token): bias}, "temperature": 1.5}


@pytest.mark.parametrize("seed", range(2))
def test_an_answer_is_a_call_or_of_the_form(ask: Ask, model: vl.MiniMaxVL, seed: int) -> None:
    body = {"tools": [STRICT], "response_format": BY_SCHEMA, "seed": seed, "parallel_tool_calls": False}
    calls = ask(**body, **biased(model, 100))
    assert (calls.finish_reason, calls.message.content) == ("tool_calls", None)
    ((name, arguments),) = called(calls.message)
    assert name == "go-to.2"
    jsonschema.validate(json.loads(arguments), POINT)
    for answer in (ask(**body, **biased(model, -100)), ask(**body, **biased(model, 100), tool_choice="none")):
        assert (answer.finish_reason, answer.message.tool_calls) == ("stop", None)
        jsonschema.validate(json.loads(answer.message.content), SCHEMA)


@pytest.mark.parametrize("form", [{}, {"response_format": {"type": "json_object"}}, {"response_format": BY_SCHEMA}])
def test_a_call_that_has_to_be_made_is_one(ask: Ask, form: dict[str, Any]) -> None:
    """Of a function that there is, with arguments of its schema, whatever the answer's form would be."""
    sampling = {"temperature": 1.5, "seed": 5, **form}
    named = {"type": "function", "function": {"name": "go-to.2"}}
    for choice, tools in (("required", [STRICT]), (named, [LOOSE, STRICT])):
        found = ask(tools=tools, tool_choice=choice, parallel_tool_calls=False, **sampling)
        assert (found.finish_reason, found.message.content) == ("tool_calls", None)
        ((name, arguments),) = called(found.message)
        assert name == "go-to.2"
        jsonschema.validate(json.loads(arguments), POINT)


def test_arguments_are_of_their_schema_where_text_may_be_said_too(ask: Ask, model: vl.MiniMaxVL) -> None:
    """The model would like to begin a call at each token, and may do so in one place."""
    found = ask(tools=[STRICT, STRICT], seed=1, parallel_tool_calls=False, **biased(model, 100))
    ((_, arguments),) = called(found.message)
    jsonschema.validate(json.loads(arguments), POINT)
    text = ask(tools=[STRICT], seed=1, **(biased(model, -100) | {"max_tokens": 12}))
    assert (text.finish_reason, text.message.tool_calls) == ("length", None)
    assert text.message.content


def test_generate_has_the_same(model: vl.MiniMaxVL) -> None:
    token = model.processor.tokenizer.token_id(FUNCTION_CALL)
    messages = [{"role": "user", "content": "Go"}]
    for bias in (100.0, -100.0):
        options: dict[str, Any] = {"temperature": 1.5, "seed": 3, "max_new_tokens": 400, "logit_bias": {token: bias}}
        (found,) = model.generate([messages], tools=[STRICT], response_format=BY_SCHEMA, **options)
        if bias < 0:
            jsonschema.validate(json.loads(found.text), SCHEMA)
        assert found.finish_reason == "stop"
        assert len(found.tool_calls) == 0 if bias < 0 else len(found.tool_calls) >= 1
        for call in found.tool_calls:
            jsonschema.validate(call.arguments, POINT)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ({"name": "a b"}, "tool 1: a name has no blanks, parentheses or halves of .*, 'a b' has"),
        ({"name": "f("}, "tool 1: a name has no blanks"),
        ({"name": "f", "strict": "yes"}, "tool 1: strict must be true or false"),
        ({"name": "f", "strict": True, "parameters": {"type": "array"}}, '"type": "object" for strict'),
        (
            {"name": "f", "strict": True, "parameters": {"properties": {"a": {"type": 5}}}},
            "the parameters of 'f' cannot be held to: .*leave strict out",
        ),
    ],
)
def test_functions_that_cannot_be_called_are_refused(ask: Ask, function: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        ask(tools=[{"type": "function", "function": function}])
    assert refused.value.param == "tools"
