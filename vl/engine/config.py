"""How much an engine takes on at once."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, SupportsIndex

from vl.errors import ConfigError


def _setting(default: int, help: str, least: int = 1) -> int:
    """A field, with what the command line says of it, and the least value that it may have."""
    value: int = field(default=default, metadata={"help": help, "least": least})
    return value


@dataclass(frozen=True)
class EngineConfig:
    """The settings of an engine; none of them changes an answer. The command line's options are made from the fields.

    Attributes:
        max_batch_size: sequences that run at once; each holds one lightning state (`heads * head_dim^2` floats per
            lightning layer) whatever its length.
        prefill_tokens: prompt tokens read per step; longer prompts are read in chunks, which bounds memory.
        mixed_tokens: the same of a pass in which answers are being written: fewer make their tokens come more evenly,
            and prompts wait longer. 0 is as many.
        cache_tokens: capacity of the paged KV cache, in tokens over all sequences. One request that needs more grows
            the cache once the engine is idle.
        page_size: tokens per KV page.
        host_cache_tokens: tokens more that the cache has room for in the host's memory, page-locked where the model is
            on a GPU. Sequences whose keys and values are there in part are written more slowly: all of it passes over
            the bus for every token.
        prefix_memory: MiB of the host's memory for the states of prompts that were read: one that begins the same way
            goes on from there. 0 keeps none. The pages that go with them are of the KV cache, and are given back when
            sequences need them.
        tile_memory: MiB of the host's memory for images as they were cut into tiles, which are not decoded again when
            they come in another prompt as the same file. 0 keeps none.
        image_memory: MiB of the device's memory for features of images, which are not encoded again when they come in
            another prompt. 0 keeps none.

    Raises:
        ConfigError: if a value is not a whole number, or too small.
    """

    max_batch_size: int = _setting(16, "Sequences that run at once.")
    prefill_tokens: int = _setting(8192, "Prompt tokens read in a pass.")
    mixed_tokens: int = _setting(0, "The same while answers are being written; 0: as many.", 0)
    cache_tokens: int = _setting(65536, "Tokens that the cache has room for.")
    page_size: int = _setting(256, "Tokens in a page of the cache.")
    host_cache_tokens: int = _setting(0, "Tokens more that the cache has room for in host memory.", 0)
    prefix_memory: int = _setting(4096, "Host memory for prompts to go on from, in MiB; 0 keeps none.", 0)
    tile_memory: int = _setting(256, "Host memory for files of images that come again, in MiB; 0 keeps none.", 0)
    image_memory: int = _setting(256, "Device memory for images that come again, in MiB; 0 keeps none.", 0)

    def __post_init__(self) -> None:
        for setting in fields(self):
            given = getattr(self, setting.name)
            value, least = whole(given), setting.metadata["least"]
            if value is None or value < least:
                raise ConfigError(
                    f"{setting.name} must be a whole number of at least {least}, not {shown(given)}: "
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
        """Pages that hold `cache_tokens`, and those in host memory."""
        return -(-self.cache_tokens // self.page_size) + self.host_pages

    @property
    def host_pages(self) -> int:
        """Pages that hold `host_cache_tokens`."""
        return -(-self.host_cache_tokens // self.page_size)


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
