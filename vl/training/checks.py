"""Values of a training config: of the right type, and within the range that they can have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from vl.errors import ConfigError

T = TypeVar("T")

_LARGEST = 1e30  # what it is multiplied with is float32
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "left out"}


def build_table(kind: type[T], values: Mapping[str, Any], table: str) -> T:
    """The dataclass `kind` from a parsed table. Raises ConfigError naming the key that is unknown or mistyped."""
    unknown = set(values) - {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise ConfigError(f"unknown key {', '.join(sorted(unknown))} in [{table}]")
    hints = get_type_hints(kind)
    for key, value in values.items():
        if not _fits(value, hints[key]):
            raise ConfigError(f"{table}.{key} = {_shown(value)} must be {_named(hints[key])}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def at_least(table: str, config: object, **bounds: float) -> None:
    """Raise ConfigError for a field that is below its bound; None is no number, and passes."""
    for key, bound in bounds.items():
        value = getattr(config, key)
        if value is not None and not value >= bound:
            raise ConfigError(f"{table}.{key} = {value!r} must be at least {bound:g}")


def above_zero(table: str, config: object, *keys: str) -> None:
    """Raise ConfigError for a field that is not above 0; None is no number, and passes."""
    for key in keys:
        value = getattr(config, key)
        if value is not None and not value > 0:
            raise ConfigError(f"{table}.{key} = {value!r} must be above 0")


def share(table: str, config: object, *keys: str) -> None:
    """Raise ConfigError for a field that is not between 0 and 1."""
    for key in keys:
        if not 0 <= getattr(config, key) <= 1:
            raise ConfigError(f"{table}.{key} = {getattr(config, key)!r} must be between 0 and 1")


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        items = parts[:1] * len(value) if isinstance(value, list | tuple) and parts[1:] == (...,) else parts
        return isinstance(value, list | tuple) and len(value) == len(items) and all(map(_fits, value, items))
    if hint is float:
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
        return whole or (isinstance(value, float) and abs(value) <= _LARGEST)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, origin or hint)


def _shown(value: Any) -> str:
    """The value in a message; Python refuses to print integers of thousands of digits."""
    if isinstance(value, int) and abs(value) >= 2**63:
        return "an integer of more than 63 bits"
    return repr(value)


def _named(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_named(part) for part in parts if part is not NoneType)
    if origin is tuple:
        many = "" if parts[1:] == (...,) else f" of {len(parts)}"
        return f"a list{many}, each {_named(parts[0])}"
    return _NAMES.get(hint, "a table")
