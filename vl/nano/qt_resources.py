"""Reads the files in a Qt resource collection (.rcc), in which GCompris' packages keep their pictures.

The format is that of Qt's `rcc --binary`, big-endian throughout: a header, then at the offsets that it names a tree of
entries, the names, and the data, each with its length before it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from vl.errors import ConfigError

_COMPRESSED, _FOLDER, _ZSTD = 1, 2, 4


def read_resources(path: Path) -> Iterator[tuple[str, bytes]]:
    """The path and the content of each file of a collection.

    Raises:
        ConfigError: if the file is no collection, or one that is packed with Zstandard.
    """
    packed = path.read_bytes()
    try:
        magic, version, tree, data, names = struct.unpack_from(">4s4I", packed)
        if magic != b"qres":
            raise ValueError("it does not begin as one")
        yield from _files(packed, (tree, data, names), 22 if version >= 2 else 14, 0, "")
    except (struct.error, ValueError, zlib.error) as error:
        raise ConfigError(f"{path} is no Qt resource collection that can be read: {error}") from error


def _files(
    packed: bytes, offsets: tuple[int, int, int], size: int, entry: int, folder: str
) -> Iterator[tuple[str, bytes]]:
    tree, data, names = offsets
    at = tree + size * entry
    name_at, flags = struct.unpack_from(">IH", packed, at)
    (length,) = struct.unpack_from(">H", packed, names + name_at)
    start = names + name_at + 6  # behind the name's length and checksum
    path = f"{folder}/{packed[start : start + 2 * length].decode('utf-16-be')}".lstrip("/") if entry else ""
    if flags & _FOLDER:
        count, first = struct.unpack_from(">II", packed, at + 6)
        for child in range(first, first + count):
            yield from _files(packed, offsets, size, child, path)
        return
    if flags & _ZSTD:
        raise ValueError(f"{path} is packed with Zstandard")
    (place,) = struct.unpack_from(">I", packed, at + 10)  # behind country and language
    (length,) = struct.unpack_from(">I", packed, data + place)
    content = packed[data + place + 4 : data + place + 4 + length]
    yield path, zlib.decompress(content[4:]) if flags & _COMPRESSED else content
