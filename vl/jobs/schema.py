"""A JSON schema that answers are held to: its top-level properties become columns of the rows."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

from preprocessing.unicode import well_formed
from vl.engine.grammars import check_held
from vl.errors import ConfigError, InputError

_LARGEST = 2**63  # beyond it no column of whole numbers goes
_LONGEST_FILE = 2**20  # bytes
_OPEN = ("patternProperties", "additionalProperties", "unevaluatedProperties")


@dataclass(frozen=True)
class Schema:
    """A JSON schema of an object whose properties are known: what is not said of others means that there are none.

    Attributes:
        text: the schema as JSON.
    """

    text: str

    @classmethod
    def of(cls, given: SchemaSource, *, held_here: bool = False) -> Schema:
        """From a schema or a file of one.

        Args:
            held_here: whether engines of this project will hold answers to it, and not a server, of which it is not
                known what it can.

        Raises:
            InputError: if it is no JSON schema of an object with properties, or one that allows others besides, or it
                refers to something outside of it; or `held_here` and it cannot be held to.
            ConfigError: if the package that checks answers, or that which holds them, is missing.
        """
        name = os.fspath(given) if isinstance(given, str | os.PathLike) else "schema"
        if isinstance(given, Schema):
            schema = given
        else:
            schema = cls._checked(_read(Path(given)) if isinstance(given, str | os.PathLike) else given, name)
        if held_here:
            check_held(schema.response_format, name)
        return schema

    @classmethod
    def _checked(cls, body: object, name: str) -> Schema:
        if not isinstance(body, Mapping) or body.get("type", "object") != "object":
            raise InputError(f'{name}: must be a JSON schema of an object, {{"type": "object", "properties": ...}}')
        properties = body.get("properties")
        if not isinstance(properties, Mapping) or not properties:
            raise InputError(f"{name}: must name properties at its top level, which become the columns of the rows")
        for key in _OPEN:
            if body.get(key) not in (None, False, {}):
                raise InputError(f"{name}: {key} allows properties that have no column: name all in properties")
        try:
            text = json.dumps(dict(body) | {"type": "object", "additionalProperties": False}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{name}: must be plain JSON: {error}") from None
        schema = cls(text)
        for reference in _references(schema.body):
            if not reference.startswith("#") or resolved(schema.body, {"$ref": reference}) is None:
                raise InputError(f"{name}: refers to {reference!r}, which is not in it: put it into its $defs")
        _check(schema, name)
        return schema

    @property
    def body(self) -> dict[str, Any]:
        return _parsed(self.text)

    @property
    def properties(self) -> dict[str, Any]:
        """The schemas of the columns."""
        return self.body["properties"]

    @property
    def digest(self) -> str:
        """Equal ones say that the schemas are: BLAKE2b, 16 bytes in hexadecimal."""
        return blake2b(json.dumps(self.body, sort_keys=True).encode(), digest_size=16).hexdigest()

    @property
    def response_format(self) -> dict[str, Any]:
        """As of `SamplingParams`, and as servers take it."""
        return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": self.body}}

    def values(self, answer: str) -> dict[str, Any]:
        """By property what an answer says; None for those that it leaves out.

        Raises:
            InputError: if it is not of the schema, as a server's may be or one that was cut, or holds numbers that no
                column can. The message ends a sentence that names the answer.
        """
        try:
            found = _numbers_checked(json.loads(answer))
        except (ValueError, RecursionError) as error:
            raise InputError(f"is no JSON that columns can hold ({error})") from None
        try:
            wrong = next(iter(_validator(self.text).iter_errors(found)), None)
        except RecursionError:
            raise InputError("is nested too deeply to be checked") from None
        if wrong is not None:
            raise InputError(f"is not of the schema: {wrong.json_path}: {wrong.message[:300]}")
        return {name: found.get(name) for name in self.properties}


SchemaSource: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | Schema"
"""A JSON schema, or a file of one."""


def resolved(root: Mapping[str, Any], node: Any) -> Any:
    """A part of a schema with the references at its top followed; None if one leads nowhere or in a circle."""
    for _ in range(32):
        if not isinstance(node, Mapping) or "$ref" not in node:
            return node
        found: Any = root
        for step in str(node["$ref"]).removeprefix("#").strip("/").split("/"):
            name = step.replace("~1", "/").replace("~0", "~")
            if name:
                found = found.get(name) if isinstance(found, Mapping) else None
        node = found
    return None


def _read(path: Path) -> Any:
    """Raises InputError."""
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_FILE + 1)
        if len(content) > _LONGEST_FILE:
            raise InputError(f"{path}: is no JSON schema of at most {_LONGEST_FILE >> 20} MiB")
        return json.loads(content)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}): --schema takes a JSON file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error})") from None


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(reference := node.get("$ref"), str):
            yield reference
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            yield from _references(part)


def _check(schema: Schema, name: str) -> None:
    """Raises InputError."""
    library = _library()
    kind = library.validators.validator_for(schema.body, default=library.Draft202012Validator)
    try:
        kind.check_schema(schema.body)
    except library.SchemaError as error:
        raise InputError(f"{name}: is no JSON schema: {error.json_path}: {error.message[:300]}") from None


def _numbers_checked(value: Any) -> Any:
    """What JSON holds, with text that is well formed. Raises ValueError for numbers that are no column's."""
    if isinstance(value, dict):
        return {well_formed(name): _numbers_checked(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_numbers_checked(part) for part in value]
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise ValueError("a whole number has more than 64 bits")
    return value


@lru_cache(16)
def _parsed(text: str) -> dict[str, Any]:
    return json.loads(text)


@lru_cache(16)
def _validator(text: str) -> Any:
    """Takes as whole numbers those that a column can hold, of which 1e19 is none."""
    library = _library()
    body = _parsed(text)
    kind = library.validators.validator_for(body, default=library.Draft202012Validator)
    plain = kind.TYPE_CHECKER

    def is_integer(_: Any, value: Any) -> bool:
        return plain.is_type(value, "integer") and -_LARGEST <= value < _LARGEST

    return library.validators.extend(kind, type_checker=plain.redefine("integer", is_integer))(body)


def _library() -> Any:
    try:
        import jsonschema
    except ImportError:
        raise ConfigError("a schema needs jsonschema: pip install 'minimax-vl[jobs]'") from None
    return jsonschema
