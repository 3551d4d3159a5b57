"""How much an engine takes on at once."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, SupportsIndex

from vl.errors import ConfigError


@dataclass(frozen=True)
class EngineConfig:
    """The settings of an engine; none of them changes an answer.

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

    max_batch_size: int = 16
    prefill_tokens: int = 8192
    cache_tokens: int = 65536
    page_size: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            given = getattr(self, field.name)
            value = whole(given)
            if value is None or value < 1:
                raise ConfigError(
                    f"{field.name} must be a whole number of at least 1, not {shown(given)}: "
                    f"leave it out for {field.default}"
                )
            object.__setattr__(self, field.name, value)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> EngineConfig:
        """The config with these fields set. Raises ConfigError, also for a name that is no field."""
        names = [field.name for field in fields(cls)]
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
