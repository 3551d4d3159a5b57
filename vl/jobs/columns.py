"""Columns of Arrow for the properties of a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow

from vl.jobs.prompts import Prompts
from vl.jobs.schema import Schema, resolved

_DEEPEST = 16  # of objects and lists in each other
_AS_JSON = {b"minimax_vl": b"json"}
_PLAIN = {
    "string": pyarrow.string(),
    "integer": pyarrow.int64(),
    "number": pyarrow.float64(),
    "boolean": pyarrow.bool_(),
}
_OF_PYTHON = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def fields(prompts: Prompts) -> list[pyarrow.Field]:
    """A column for each of `prompts.values`: of the property's type, or text as JSON where it has none of its own."""
    if prompts.schema is None:
        return []
    found = []
    for name, property in prompts.values.items():
        kind = _type(prompts.schema, prompts.schema.properties[property])
        found.append(
            pyarrow.field(name, pyarrow.string(), metadata=_AS_JSON) if kind is None else pyarrow.field(name, kind)
        )
    return found


def fitted(value: Any, field: pyarrow.Field) -> Any:
    """A value as its column takes it."""
    if value is not None and _is_json(field):
        return json.dumps(value, ensure_ascii=False)
    return _cast(value, field.type)


def restored(value: Any, field: pyarrow.Field) -> Any:
    """The value that `fitted` was given; of an object with what it left out as None.

    Columns of numbers are float64: whole numbers beyond 2^53 are rounded there, as by most readers of JSON.
    """
    return json.loads(value) if value is not None and _is_json(field) else value


def _is_json(field: pyarrow.Field) -> bool:
    return bool(field.metadata) and _AS_JSON.items() <= field.metadata.items()


def _cast(value: Any, kind: pyarrow.DataType) -> Any:
    """Numbers as the type has them: 3 may be of a column of floats, and 3.0 of one of integers."""
    if value is None:
        return None
    if pyarrow.types.is_floating(kind):
        return float(value)
    if pyarrow.types.is_integer(kind):
        return int(value)
    if pyarrow.types.is_list(kind):
        return [_cast(part, kind.value_type) for part in value]
    if pyarrow.types.is_struct(kind):
        return {part.name: _cast(value.get(part.name), part.type) for part in kind}
    return value


def _type(schema: Schema, node: Any, depth: int = 0, above: tuple[str, ...] = ()) -> pyarrow.DataType | None:
    """None where values may be of several types, or of objects whose properties are not all known.

    `above`: the references that led here; a schema that refers to itself has no end.
    """
    if isinstance(node, Mapping) and "$ref" in node:
        if node["$ref"] in above:
            return None
        above = (*above, node["$ref"])
    node = resolved(schema.body, node)
    if not isinstance(node, Mapping) or depth > _DEEPEST:
        return None
    choices = node.get("anyOf", node.get("oneOf"))
    if choices is not None and "type" not in node:
        some = [part for part in (resolved(schema.body, choice) for choice in choices) if part != {"type": "null"}]
        return _type(schema, some[0], depth + 1, above) if len(some) == 1 else None
    names = _names(node)
    if names == {"integer", "number"}:
        names = {"number"}
    if len(names) != 1:
        return None
    name = names.pop()
    if name == "array":
        items = None if "prefixItems" in node else _type(schema, node.get("items"), depth + 1, above)
        return None if items is None else pyarrow.list_(items)
    if name == "object":
        return _struct(schema, node, depth, above)
    return _PLAIN.get(name)


def _names(node: Mapping[str, Any]) -> set[str]:
    """Of the types that values may be of, but for null."""
    given = node.get("type")
    if given is None:
        values = [node["const"]] if "const" in node else node.get("enum", [])
        given = [_OF_PYTHON.get(type(value), "object") for value in values]
    return {given} if isinstance(given, str) else set(given) - {"null"}


def _struct(schema: Schema, node: Mapping[str, Any], depth: int, above: tuple[str, ...]) -> pyarrow.DataType | None:
    properties = node.get("properties")
    if not properties or node.get("additionalProperties") is not False or node.get("patternProperties"):
        return None
    parts = {}
    for name, part in properties.items():
        kind = _type(schema, part, depth + 1, above)
        if kind is None:
            return None
        parts[name] = kind
    return pyarrow.struct(parts)
