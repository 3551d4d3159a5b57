"""How much an engine takes on at once."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, SupportsIndex

from vl.errors import ConfigError

LEAST = 1  # of every setting


def _setting(default: int, help: str) -> int:
    """A field, with what the command line says of it."""
    value: int = field(default=default, metadata={"help": help})
    return value


@dataclass(frozen=True)
class EngineConfig:
    """The settings of an engine; none of them changes an answer. The command line's options are made from the fields.

    Attributes:
        max_batch_size: sequences that run at once; each holds one lightning state (`heads * head_dim^2` floats per
            lightning layer) whatever its length.
        prefill_tokens: prompt tokens read per step; longer prompts are read in chunks, which bounds memory.
        cache_tokens: capacity of the paged KV cache, in tokens over all sequences. One request that needs more grows
            the cache once the engine is idle.
        page_size: tokens per KV page.

    Raises:
        ConfigError: if a value is not a whole number of at least 1.
    """

    max_batch_size: int = _setting(16, "Sequences that run at once.")
    prefill_tokens: int = _setting(8192, "Prompt tokens read in a pass.")
    cache_tokens: int = _setting(65536, "Tokens that the cache has room for.")
    page_size: int = _setting(256, "Tokens in a page of the cache.")

    def __post_init__(self) -> None:
        for setting in fields(self):
            given = getattr(self, setting.name)
            value = whole(given)
            if value is None or value < LEAST:
                raise ConfigError(
                    f"{setting.name} must be a whole number of at least {LEAST}, not {shown(given)}: "
                    f"leave it out for {setting.default}"
                )
            object.__setattr__(self, setting.name, value)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> EngineConfig:
        """The config with these fields set. Raises ConfigError, also for a name that is no field."""
        names = [setting.name for setting in fields(cls)]
        unknown = sorted(set(options) - set(names))
        if unknown:
            raise ConfigError(f"unknown option {', '.join(unknown)}: the options are {', '.join(names)}")
        return cls(**options)

    @property
    def pages(self) -> int:
        """Pages that hold `cache_tokens`."""
        return -(-self.cache_tokens // self.page_size)


def whole(value: object) -> int | None:
    """`value` as an int if its type is one of whole numbers (NumPy's too), else None: bool, 50.0 and "50" are not."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    try:
        return operator.index(value)
    except TypeError:  # an array or tensor that holds no single whole number
        return None


def shown(value: object) -> str:
    """`repr`, cut to what fits a sentence."""
    try:
        text = repr(value)
    except Exception:  # of a number with thousands of digits, or whatever a caller's class does
        return f"this {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
