"""`response_format` over HTTP: what comes is of the form that was asked for, and what is none is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from .conftest import ask, events

CHAT = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "sides": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "sides"],
    "additionalProperties": False,
}
BY_SCHEMA = {"type": "json_schema", "json_schema": {"name": "shape", "schema": SCHEMA, "strict": True}}


def content(client: TestClient, **fields: Any) -> str:
    found = client.post(CHAT, json=ask(**fields))
    assert found.status_code == 200, found.text
    (choice,) = found.json()["choices"]
    assert choice["finish_reason"] == "stop"
    return choice["message"]["content"]


@pytest.mark.parametrize("seed", range(8))
def test_answers_are_of_the_schema(client: TestClient, seed: int) -> None:
    sampling = {"temperature": 1.5, "seed": seed, "max_tokens": 200}
    found = content(client, response_format=BY_SCHEMA, **sampling)
    value = json.loads(found)
    assert set(value) == {"colour", "sides"}
    assert value["colour"] in ("red", "blue")
    assert value["sides"] in range(10)
    streamed = events(client.post(CHAT, json=ask(response_format=BY_SCHEMA, stream=True, **sampling)))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed) == found


def test_expressions_and_grammars(client: TestClient) -> None:
    found = content(client, response_format={"type": "regex", "pattern": "[0-9]{3}-[a-c]{2}"}, max_tokens=20)
    assert re.fullmatch("[0-9]{3}-[a-c]{2}", found)
    grammar = {"type": "grammar", "grammar": 'start: ("yes" | "no") "!"'}
    assert content(client, response_format=grammar, max_tokens=20) in ("yes!", "no!")


@pytest.mark.parametrize(
    "form",
    [
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}},
        {"type": "regex", "pattern": "("},
        {"type": "grammar", "grammar": "start: ("},
        {},
    ],
)
def test_what_is_no_form_is_refused(client: TestClient, form: dict[str, Any]) -> None:
    found = client.post(CHAT, json=ask(response_format=form))
    assert found.status_code == 400, found.text
    assert "response_format" in found.json()["error"]["message"]
