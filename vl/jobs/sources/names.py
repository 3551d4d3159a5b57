"""An image of a job, and what rows call it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from preprocessing.sources import kind_of
from vl.errors import InputError

_LONGEST_NAME = 255


@dataclass(frozen=True)
class Picture:
    """An image inside of something else: a shard, a table, a bucket.

    Args:
        name: what its row calls it; the same in every run.
        read: its encoded file; called in a worker thread, when the image is due. Raises a `vl.Error` naming the cause.
    """

    name: str
    read: Callable[[], bytes]


Source: TypeAlias = str | Picture
"""A path, URL, data URL or base64 text, as `preprocessing.load_image` takes it, or a `Picture`."""


def broken(name: str, cause: str) -> Picture:
    """A part of a source that cannot be read: its row will be an error, so that the loss is seen."""

    def read() -> bytes:
        raise InputError(f"{name}: {cause}")

    return Picture(name, read)


def source_key(source: Source) -> str:
    """What a row calls its image: the source itself, or the digest of data that are too long for a name."""
    if isinstance(source, Picture):
        return source.name
    is_data = source[:5].lower() == "data:"
    if not is_data and len(source) <= _LONGEST_NAME:
        return source
    kind = kind_of(source)
    if kind == "path" or (kind == "url" and not is_data):
        return source
    digest = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()
    start = source[:100].partition(",")[0] if is_data else "base64"
    return f"{start},sha256:{digest}"
