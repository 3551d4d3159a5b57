"""What went wrong, in the form in which OpenAI's API says it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import Response
from pydantic import ValidationError

from vl.errors import ConfigError, DeviceError, ImageError, InputError
from vl.server.openai import CHOICES, FIELDS

log = logging.getLogger("vl.server")

_TYPES = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
}
"""What was expected, by pydantic's names of faults."""
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number with a point",
    str: "a string",
    list: "a list",
    dict: "an object",
}
_OF_A_CHOICE = 2  # parts of its place: the field, and which of the forms that it may have
_LOOKED_AT = 1000  # items of a list


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: the cause, and what to do.
        param: the field of the request that is at fault. `code`: for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    @property
    def kind(self) -> str:
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


class Json(Response):
    """JSON in ASCII: whatever a request spells, half a surrogate pair too, can be said back."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumps(content)


def dumps(content: Any) -> bytes:
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def response(error: ApiError) -> Json:
    return Json(error.body(), error.status, headers=error.headers)


def as_api_error(error: BaseException) -> ApiError:
    """What to tell of any error; one that nobody has foreseen goes to the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, InputError | ImageError | ConfigError):  # the last for what is not installed here
        return ApiError(400, str(error), param=_field_of(str(error)))
    if isinstance(error, DeviceError):
        return ApiError(503, str(error), code="device_error")
    log.error("a request failed", exc_info=error)
    return ApiError(500, f"the server failed on this request ({type(error).__name__}): its log says more")


@contextmanager
def refusing(field: str) -> Iterator[None]:
    """Whatever is wrong with what is done within is so with this field of the request."""
    try:
        yield
    except (InputError, ImageError) as error:
        raise ApiError(400, str(error), param=field) from None


def _field_of(message: str) -> str | None:
    """The field of a request with whose name a message begins, as those of the engine about its settings do."""
    found = re.match(r"\w+", message)
    return found[0] if found and found[0] in FIELDS else None


def _invalid(error: ValidationError) -> ApiError:
    """What a schema says of its first fault."""
    first, *others = error.errors(include_url=False)
    name = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{name!r:.100} is not a field that this server knows: leave it out", param=name)
    if name in CHOICES and len(first["loc"]) > 1:  # of which each had its fault, in words of its own
        given = next(each["input"] for each in (first, *others) if len(each["loc"]) == _OF_A_CHOICE)
        return ApiError(400, f"{name} must be {CHOICES[name]}, not {told(given)}", param=name)
    where = f"{name or 'the request'}{''.join(f'[{part}]' for part in first['loc'][1:])}"
    if first["type"] == "missing":
        return ApiError(400, f"{where} is missing", param=name)
    if first["type"] == "literal_error":
        return ApiError(400, f"{where} must be {first['ctx']['expected']}, not {first['input']!r:.100}", param=name)
    if first["type"] == "float_type" and type(first["input"]) is int:
        return ApiError(400, f"{where} is a number of too many digits", param=name)
    if expected := _TYPES.get(first["type"]):
        return ApiError(400, f"{where} must be {expected}, not {told(first['input'])}", param=name)
    return ApiError(400, f"{where}: {first['msg']}", param=name)


def told(value: Any, depth: int = 3) -> str:
    """What kind of JSON a value is, and a list by what is in it, to so many lists deep."""
    if isinstance(value, list) and value and depth:
        return f"a list of {' and '.join(dict.fromkeys(told(item, depth - 1) for item in value[:_LOOKED_AT]))}"
    return _KINDS.get(type(value), "null")
