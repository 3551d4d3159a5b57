"""Functions that the model may call: their descriptions, the calls in a conversation, and the calls in an answer.

The released model writes its calls as the special token `<function_call>` and a fenced block, one call a line:

    <function_call>```typescript
    functions.get_weather({"city": "Paris"})
    ```
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preprocessing.errors import InputError, brief
from preprocessing.unicode import well_formed

FUNCTION_CALL = "<function_call>"
"""The special token with which the model begins its calls."""

_FENCE = re.compile(r"\s*(?:```\w*)?")
_CALL = re.compile(r"\s*functions\.([^\s(]+)\s*\(\s*")
_CLOSE = re.compile(r"\s*\)[;,]?")
_END = re.compile(rf"\)[;,]?\s*(?=functions\.|```|{FUNCTION_CALL}|\Z)|```|{FUNCTION_CALL}|\Z")


def _finite(number: str) -> float:
    """Raises ValueError for what JSON has no word for once it is read: `NaN`, `Infinity` and `1e999`."""
    found = float(number)
    if not math.isfinite(found):
        raise ValueError(f"{number} is no number of JSON's")
    return found


# Strings may hold newlines as they are.
_DECODER = json.JSONDecoder(strict=False, parse_constant=_finite, parse_float=_finite)


@dataclass(frozen=True)
class ToolCall:
    """A call that the model made: the function's name, and its arguments.

    `arguments` is the parsed object, or the text as it stands where that is not a JSON object.
    """

    name: str
    arguments: dict[str, Any] | str


def parse_tool_calls(text: str) -> list[ToolCall]:
    """The calls in an answer that was decoded with its special tokens, in order; none where there is no such token."""
    calls: list[ToolCall] = []
    at = text.find(FUNCTION_CALL)
    while at >= 0:
        at = _match(_FENCE, text, at + len(FUNCTION_CALL))
        while found := _CALL.match(text, at):
            arguments, at = _parse_arguments(text, found.end())
            calls.append(ToolCall(found[1], arguments))
        at = text.find(FUNCTION_CALL, at)
    return calls


def _parse_arguments(text: str, start: int) -> tuple[dict[str, Any] | str, int]:
    """What stands between a call's parentheses, and where the call ends."""
    if closed := _CLOSE.match(text, start):
        return {}, closed.end()
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        value, end = None, start
    if isinstance(value, dict) and (closed := _CLOSE.match(text, end)):
        return value, closed.end()
    found = _END.search(text, start)
    assert found is not None, "the pattern matches the end of any text"
    # Whatever ends the call without its parenthesis is left for what comes next.
    return text[start : found.start()].strip(), found.end() if found[0].startswith(")") else found.start()


def _match(pattern: re.Pattern[str], text: str, start: int) -> int:
    """Where the pattern, which may match nothing, ends."""
    found = pattern.match(text, start)
    return start if found is None else found.end()


def write_tool_calls(calls: Sequence[Mapping[str, Any]]) -> str:
    """Calls of the form of `read_tool_calls` as the released model writes them."""
    lines = []
    for call in calls:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        lines.append(f"functions.{name}({text})\n")
    return f"{FUNCTION_CALL}```typescript\n{''.join(lines)}```"


def parse_arguments(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The calls with JSON text made an object where it is one, as templates of other models expect."""
    parsed = []
    for call in calls:
        function = call["function"]
        if isinstance(function["arguments"], str):
            try:
                value = json.loads(function["arguments"])
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                function = {**function, "arguments": value}
        parsed.append({**call, "function": function})
    return parsed


def read_tools(tools: Any) -> list[dict[str, Any]]:
    """Descriptions of functions, as plain JSON. Raises InputError naming the tool that is not a JSON object."""
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise InputError(f"tools must be a list of descriptions of functions (JSON objects), got {brief(tools)}")
    return [_read_object(tool, f"tool {i}") for i, tool in enumerate(tools, 1)]


def read_tool_calls(message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The calls of an assistant's message, each `{"type": "function", "function": {"name", "arguments"}}` and its id.

    Read from `tool_calls` or from OpenAI's older `function_call`. `arguments` is an object or JSON text, as given.
    Raises InputError naming the call that is malformed.
    """
    given = message.get("tool_calls")
    if message.get("function_call") is not None:
        if given:
            raise InputError(f"{where}: has both tool_calls and function_call; keep tool_calls")
        given = [{"function": message["function_call"]}]
    if given is None:
        return []
    if not isinstance(given, list | tuple):
        raise InputError(f"{where}: tool_calls must be a list of calls, got {brief(given)}")
    return [_read_call(call, f"{where}, tool call {i}") for i, call in enumerate(given, 1)]


def _read_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise InputError(f'{where}: expected {{"function": {{"name": ..., "arguments": ...}}}}, got {brief(call)}')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = well_formed(arguments)
    elif isinstance(arguments, Mapping):
        arguments = _read_object(arguments, f"{where}, arguments")
    elif arguments is None:
        arguments = {}
    else:
        raise InputError(f"{where}: arguments must be an object or JSON text, got {brief(arguments)}")
    identity = call.get("id")
    if identity is not None and not isinstance(identity, str):
        raise InputError(f"{where}: id must be a string, got {brief(identity)}")
    read = {"type": "function", "function": {"name": well_formed(name), "arguments": arguments}}
    return read if identity is None else {"id": well_formed(identity), **read}


def _read_object(value: Any, where: str) -> dict[str, Any]:
    """A JSON object in Python's own types."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be a JSON object, got {brief(value)}")
    try:
        text = well_formed(json.dumps(dict(value), ensure_ascii=False, allow_nan=False))
        read: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from None
    return read
