"""Images that come again, byte for byte: captioned once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any, Generic, Protocol, TypeVar

Row = dict[str, Any]
Find = Callable[[bytes], Row | None]


class HasRow(Protocol):
    """An image on its way to a row."""

    row: Row


AnItem = TypeVar("AnItem", bound=HasRow)


def digest_of(content: bytes) -> str:
    """The BLAKE2b digest of an encoded image, 16 bytes in hexadecimal."""
    return blake2b(content, digest_size=16).hexdigest()


def answer_key(row: Row) -> bytes | None:
    """16 bytes that are equal for rows of equal images and prompts; None for one of which that is not known."""
    digest, settings = row.get("digest"), row.get("settings")
    if digest is None or settings is None:
        return None
    if "template" not in settings:  # all rows have the same prompt
        return bytes.fromhex(digest)
    prompt = row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"])
    return blake2b(f"{digest}{prompt}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Duplicates(Generic[AnItem]):
    """What is known of images that come again: the rows that are written, and the items that are on their way.

    Args:
        find: the row of an `answer_key` that is written, if there is one. Called in any thread.
    """

    def __init__(self, find: Find | None = None) -> None:
        self._find = find
        self._coming: dict[bytes, AnItem] = {}
        self._lock = threading.Lock()

    def written(self, row: Row) -> Row | None:
        """A row with the answers that `row` is to have."""
        key = answer_key(row)
        found = self._find(key) if self._find and key else None
        alike = (
            found and "error" not in found and all(found[name] == row[name] for name in ("model", "prompt", "settings"))
        )
        return found if alike else None

    def coming(self, row: Row) -> AnItem | None:
        """The item that will have the answers that `row` is to have."""
        return self._coming.get(answer_key(row) or b"")

    def claim(self, item: AnItem) -> AnItem:
        """The item that brings the answers for this one: itself, if no other does already."""
        key = answer_key(item.row)
        if key is None:
            return item
        with self._lock:
            return self._coming.setdefault(key, item)

    def forget(self, items: Iterable[AnItem]) -> None:
        """Their rows are written, or nobody will ask for them."""
        for item in items:
            key = answer_key(item.row) or b""
            with self._lock:
                if self._coming.get(key) is item:
                    del self._coming[key]
