"""JSON schemas drawn at random: of every type, nested, with bounds, choices, references and names in any script."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

NAMES = ["name", "größe", "色", "🙂", "a b", 'quo"te', "back\\slash", "x", "items", "née"]
PATTERNS = [r"^[a-c]{2,4}$", r"^(ja|nein|日本)$", r"^\d{3}-\d{2}$"]


def schema(random: Random, depth: int = 2) -> dict[str, Any]:
    """One whose texts are short."""
    kinds: list[Callable[[Random, int], dict[str, Any]]] = [_string, _number, _choice, _plain]
    return random.choice([*kinds, *[_object, _array, _any] * 2] if depth else kinds)(random, depth)


def _string(random: Random, depth: int) -> dict[str, Any]:
    kind = random.randrange(4)
    if kind == 0:
        return {"type": "string", "pattern": random.choice(PATTERNS)}
    if kind == 1:
        return {"type": "string", "format": random.choice(["date", "time", "uuid", "ipv4"])}
    return {"type": "string", "minLength": random.randrange(3), "maxLength": random.randrange(3, 12)}


def _number(random: Random, depth: int) -> dict[str, Any]:
    least = random.randrange(-50, 50)
    bounds = {random.choice(["minimum", "exclusiveMinimum"]): least, "maximum": least + random.randrange(2, 1000)}
    return {"type": random.choice(["integer", "number"]), **bounds}


def _choice(random: Random, depth: int) -> dict[str, Any]:
    values = [*NAMES, 7, -1.5, True, None, [1, "日"], {"a": {}}]
    return {"const": random.choice(values)} if random.random() < 0.3 else {"enum": random.sample(values, 3)}


def _plain(random: Random, depth: int) -> dict[str, Any]:
    return {"type": random.choice(["boolean", "null", ["boolean", "null"]])}


def _object(random: Random, depth: int) -> dict[str, Any]:
    names = random.sample(NAMES, random.randrange(1, 4))
    properties = {name: schema(random, depth - 1) for name in names}
    required = [name for name in names if random.random() < 0.7]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(random: Random, depth: int) -> dict[str, Any]:
    least = random.randrange(3)
    found = {"type": "array", "items": schema(random, depth - 1), "minItems": least, "maxItems": least + 2}
    if random.random() < 0.3:
        found |= {"prefixItems": [schema(random, depth - 1)], "minItems": max(1, least)}
    return found


def _any(random: Random, depth: int) -> dict[str, Any]:
    if random.random() < 0.3:  # a list of any length
        rest = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}
        node = {"type": "object", "properties": {"v": schema(random, 0), "next": rest}, "required": ["v", "next"]}
        whole = {"node": node | {"additionalProperties": False}}
        return {"$defs": whole, "$ref": "#/$defs/node"} if depth == 2 else schema(random, 0)
    return {"anyOf": [schema(random, depth - 1) for _ in range(2)]}
