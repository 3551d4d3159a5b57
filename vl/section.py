"""A JSON object of a checkpoint's files that knows where it stands: every complaint names the file and the key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vl.errors import ConfigError

LARGEST_INTEGER = 2**31 - 1


class Section:
    """A JSON object and its place: the file and the key path."""

    def __init__(self, values: Mapping[str, Any], file: Path, path: str = "") -> None:
        self.values, self.file, self.path = values, file, path

    @classmethod
    def read(cls, file: Path, *, optional: bool = False) -> Section:
        """The object in a file; an empty one if the file may be missing and is.

        Raises:
            ConfigError: if the file is missing, cannot be read, or holds something else.
        """
        try:
            values = json.loads(file.read_text(encoding="utf-8-sig"))
        except FileNotFoundError as error:
            if optional:
                return cls({}, file)
            raise ConfigError(
                f"{file} does not exist: give a folder that holds a checkpoint in the released layout"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{file} cannot be read as JSON: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{file} must hold a JSON object, not {type(values).__name__}")
        return cls(values, file)

    def error(self, key: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.file}: {self.path}{key} {problem}")

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def child(self, key: str) -> Section:
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.error(key, f"must be an object, got {value!r}")
        return Section(value, self.file, f"{self.path}{key}.")

    def allow(self, key: str, *supported: Any) -> None:
        """Refuse the key unless it is absent or has one of the supported values."""
        if key in self.values and self.values[key] not in supported:
            wanted = " or ".join(repr(value) for value in supported)
            raise self.error(key, f"= {self.values[key]!r} is not supported: this implementation has {wanted} only")

    def find(self, *keys: str) -> tuple[str, Any]:
        """The one of `keys` that is present and its value, or the first key and None; null counts as absent."""
        found = [(key, self.values[key]) for key in keys if self.has(key)]
        for key, value in found[1:]:
            if value != found[0][1]:
                raise self.error(key, f"= {value!r} contradicts {found[0][0]} = {found[0][1]!r}: keep one of them")
        return found[0] if found else (keys[0], None)

    def integer(self, *keys: str, default: int | None = None, least: int = 1) -> int:
        key, value = self.find(*keys)
        value = default if value is None else value
        if value is None:
            raise self.error(key, "is missing: it is needed to build the model")
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST_INTEGER:
            raise self.error(key, f"must be an integer from {least} to {LARGEST_INTEGER}, got {_short(value)}")
        return value

    def number(self, *keys: str, default: float, least: float = -math.inf, most: float = math.inf) -> float:
        """A finite number from `least` to `most`."""
        key, value = self.find(*keys)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < math.inf:
            raise self.error(key, f"must be a finite number, got {_short(value)}")
        if not least <= value <= most:
            raise self.error(key, f"must be a number from {least:g} to {most:g}, got {_short(value)}")
        try:
            return float(value)
        except OverflowError as error:
            raise self.error(key, "is too large") from error

    def token_ids(self, key: str) -> tuple[int, ...]:
        """A token id, a list of them, or null."""
        value = self.values.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise self.error(key, f"must be a token id or a list of them, got {value!r}")
        return tuple(ids)


def _short(value: Any) -> str:
    """The value in a message; Python refuses to print integers of thousands of digits."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return "an integer of more than 30 digits"
    return repr(value)
