"""Calls of functions that an answer may be, or has to be, in the released template's form: their grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preprocessing.reasoning import Markers
from preprocessing.unicode import well_formed
from vl.engine.response_format import plain
from vl.errors import InputError

_MOST = 1024  # functions
ANSWER, OBJECT = "answer", "object"
"""The names of the grammars of what may be said instead of a call, and of arguments that are held to no schema."""
_BEGUN = "```typescript\nfunctions."


@dataclass(frozen=True)
class Function:
    """One that may be called.

    Attributes:
        name: of characters that a call can be told by and tokens can spell: no blanks, parentheses or half pairs.
        schema: that its arguments are held to, as `response_format` has one; None: any JSON object.
    """

    name: str
    schema: Mapping[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class Calls:
    """What an answer may call instead of being text, or text of a form.

    Attributes:
        token: with which calls begin, `<function_call>`.
        functions: that may be called.
        several: whether more than one.
        named: None: the answer may be calls. Otherwise it has to be: its prompt ends with `begun`, which is that of a
            call of this function, or of any for "".
        markers: of what may be thought before an answer that is not held to a form.
    """

    token: int
    functions: tuple[Function, ...]
    several: bool = True
    named: str | None = None
    markers: Markers | None = None

    @classmethod
    def of(
        cls,
        tools: Sequence[Mapping[str, Any]],
        token: int,
        *,
        several: bool = True,
        named: str | None = None,
        markers: Markers | None = None,
    ) -> Calls:
        """From descriptions of functions, OpenAI's or the model card's. Raises InputError naming the tool."""
        if len(tools) > _MOST:
            raise InputError(f"tools must be at most {_MOST:,} functions, not {len(tools):,}")
        functions = tuple(_function(tool, f"tool {number}") for number, tool in enumerate(tools, 1))
        return cls(token, functions, several, named, markers)

    @property
    def begun(self) -> str:
        """The text behind `token` with which the prompt ends, if there has to be a call."""
        return "" if self.named is None else _BEGUN + (f"{self.named}(" if self.named else "")

    def key(self) -> list[Any]:
        """Plain JSON by which its grammars are known."""
        functions = [[each.name, each.schema] for each in self.functions]
        return [self.token, functions, self.several, self.named, self.markers]

    def grammars(self, answer: str | None = None) -> tuple[str, dict[str, Mapping[str, Any] | None]]:
        """The main grammar, in llguidance's Lark.

        Args:
            answer: the name of the grammar of what may be said instead of a call; None: any text, before one too.

        Returns:
            It, and by the names of the grammars that it refers to, the schema of each (None: any object).
        """
        # In one grammar for all where there is no schema: there may be hundreds of functions.
        arguments = [OBJECT if each.schema is None else f"arguments{at}" for at, each in enumerate(self.functions)]
        rules = [f'rest{at}: @{name}{"?" * (name == OBJECT)} ")"' for at, name in enumerate(arguments)]
        # Not as rules of their own: the library follows at most 2,000 at a time.
        called = [f"{json.dumps(each.name + '(')} rest{at}" for at, each in enumerate(self.functions)]
        rules.append(f'line: "functions." ({" | ".join(called)}) "\\n"')
        more = "line* " if self.several else ""
        if self.named is None:
            rules.append(f'call: <[{self.token}]> "```typescript\\n" line {more}"```"')
            rules += self._start(answer)
        else:
            first = [f"rest{at}" for at, each in enumerate(self.functions) if each.name == self.named] or called
            rules.append(f'start: ({" | ".join(first)}) "\\n" {more}"```"')
        schemas = {name: each.schema for name, each in zip(arguments, self.functions, strict=True)}
        return "\n".join(rules), schemas

    def _start(self, answer: str | None) -> list[str]:
        if answer is not None:
            return [f"start: @{answer} | call"]
        text = ["TEXT: /(?s:.)+/"]
        if self.markers is None:
            return [*text, "start: TEXT? call?"]
        thought = f"thought: <[{self.markers.open}]> TEXT? <[{self.markers.close}]>"
        return [*text, thought, "start: thought? TEXT? call?"]


def name_of(tool: Any) -> str | None:
    """Of a function's description, OpenAI's or the model card's."""
    name = _described(tool).get("name")
    return name if isinstance(name, str) else None


def is_strict(tool: Any) -> bool:
    """Whether the arguments of a function are to be held to their schema."""
    return bool(_described(tool).get("strict"))


def _described(tool: Any) -> Mapping[str, Any]:
    """What a description says of its function; nothing if it is none."""
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _function(tool: Any, where: str) -> Function:
    if not isinstance(tool, Mapping):
        raise InputError(f"{where} must be a JSON object, not {tool!r:.80}")
    if tool.get("type", "function") != "function":
        raise InputError(f'{where} must be of "type": "function", not {tool["type"]!r:.80}: there are no others here')
    name, inner = name_of(tool), _described(tool)
    if not name:
        raise InputError(f"{where} needs a name")
    if any(each.isspace() or each in "()" for each in name) or name != well_formed(name):
        raise InputError(f"{where}: a name has no blanks, parentheses or halves of surrogate pairs, {name!r:.80} has")
    strict = inner.get("strict")
    if not isinstance(strict, bool | None):
        raise InputError(f"{where}: strict must be true or false")
    if not isinstance(inner.get("parameters"), Mapping | None):
        raise InputError(f"{where}: parameters must be a JSON schema (an object), not {inner['parameters']!r:.80}")
    return Function(name, _schema(inner.get("parameters"), where) if strict else None)


def _schema(parameters: Mapping[str, Any] | None, where: str) -> Mapping[str, Any]:
    """What arguments are held to."""
    if parameters is None:  # OpenAI: a function without them has none
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if parameters.get("type", "object") != "object":
        raise InputError(f'{where}: parameters must be a JSON schema of "type": "object" for strict')
    return plain({"type": "object", **parameters}, f"{where}: parameters")
