"""What `response_format` may say, as OpenAI has it and beyond: checked here, and made a grammar elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vl.engine.config import shown
from vl.errors import InputError

# By type: the key that says more, beside "type".
_KEYS = {"text": None, "json_object": None, "json_schema": "json_schema", "regex": "pattern", "grammar": "grammar"}
_SCHEMA_KEYS = frozenset({"name", "description", "schema", "strict"})
_LONGEST = 2**20  # characters of one, as JSON


def checked_format(given: object) -> dict[str, Any] | None:
    """A copy in plain JSON, None for text of any form. Raises InputError."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise InputError(f'response_format must be a mapping such as {{"type": "json_object"}}, not {shown(given)}')
    form = plain(given, "response_format")
    kind = form.get("type")
    if not isinstance(kind, str) or kind not in _KEYS:
        raise InputError(f"response_format must be of a type among {', '.join(_KEYS)}, not {shown(kind)}")
    key = _KEYS[kind]
    unknown = sorted(set(form) - {"type", key})
    if unknown:
        raise InputError(f"response_format of type {kind} must be without {', '.join(unknown)}: there is no such key")
    if kind == "json_schema":
        _check_schema(form.get("json_schema"))
    elif key is not None and not (isinstance(form.get(key), str) and form[key]):
        raise InputError(f"response_format of type {kind} must be with {key!r}, a string, not {shown(form.get(key))}")
    return None if kind == "text" else form


def plain(given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """A copy in plain JSON. Raises InputError naming `what` that is none, or is too long."""
    try:
        text = json.dumps(dict(given), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{what} must be plain JSON: {error}") from None
    if len(text) > _LONGEST:
        raise InputError(f"{what} must be at most {_LONGEST:,} characters of JSON, not {len(text):,}")
    read: dict[str, Any] = json.loads(text)
    return read


def _check_schema(given: object) -> None:
    if not isinstance(given, dict) or not isinstance(given.get("schema"), dict | bool):
        raise InputError('response_format of type json_schema must be with "json_schema": {"schema": {...}}')
    unknown = sorted(set(given) - _SCHEMA_KEYS)
    if unknown:
        raise InputError(f"response_format must be without {', '.join(unknown)} in json_schema: there is no such key")
    if not isinstance(given.get("strict"), bool | None):
        raise InputError(f"response_format must have strict true or false, not {shown(given['strict'])}")
