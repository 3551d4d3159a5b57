"""Compressed shards and tables: known by name or by content, and said so."""

from __future__ import annotations

import os
from typing import IO

from preprocessing.formats import compression_of

_SUFFIXES = frozenset((".br", ".bz2", ".gz", ".lz4", ".lzma", ".xz", ".z", ".zip", ".zst"))
_TARS = frozenset((".tbz", ".tbz2", ".tgz", ".tlz", ".txz", ".tzst"))
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_UNPACK = "unpack it, as images and rows are read one by one where they lie"

PACKED = f"is compressed: {_UNPACK}"
"""What is said of a file that is so by its name."""


def unpacked_name(name: str) -> str:
    """What a compressed file is called when it is unpacked; the name of any other as it is."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in _SUFFIXES else f"{stem}.tar" if suffix.lower() in _TARS else name


def why_not_read(file: IO[bytes]) -> str | None:
    """Why a file cannot be the shard or table that its name promises, by its first bytes; None if these do not tell.

    Args:
        file: at its start, where it is again afterwards.
    """
    start = file.read(16)
    file.seek(0)
    if (kind := compression_of(start)) is not None:
        return f"is compressed, by {kind}, whatever its name says: {_UNPACK}"
    return "is text in UTF-16: save it in UTF-8" if start.startswith(_UTF_16) else None
