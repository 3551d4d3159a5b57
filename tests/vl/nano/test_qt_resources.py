"""Collections of Qt resources are read as Qt 5's `rcc --binary` writes them, and what is none is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

import vl
from vl.nano.qt_resources import read_resources


def collection(version: int = 2, flags: int = 0, content: bytes = b"<svg/>") -> bytes:
    """A root with the folder "a", in which "b.svg" and "c.png" are; the layout is of qtbase's rcc.cpp."""
    names, places = b"", []
    for name in ("a", "b.svg", "c.png"):
        places.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    data = b"".join(struct.pack(">I", len(part)) + part for part in (content, b"pixels"))
    stamp = bytes(8) if version >= 2 else b""
    entries = (
        struct.pack(">IHII", 0, 2, 1, 1),
        struct.pack(">IHII", places[0], 2, 2, 2),
        struct.pack(">IHHHI", places[1], flags, 0, 1, 0),
        struct.pack(">IHHHI", places[2], 0, 0, 1, 4 + len(content)),
    )
    tree = b"".join(entry + stamp for entry in entries)
    return struct.pack(">4s4I", b"qres", version, 20, 20 + len(tree), 20 + len(tree) + len(data)) + tree + data + names


@pytest.mark.parametrize("version", [1, 2])
def test_files_have_their_folders_paths(tmp_path: Path, version: int) -> None:
    path = tmp_path / "some.rcc"
    path.write_bytes(collection(version))
    assert dict(read_resources(path)) == {"a/b.svg": b"<svg/>", "a/c.png": b"pixels"}


def test_what_is_compressed_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "some.rcc"
    text = b"<svg>" + b" " * 500
    path.write_bytes(collection(flags=1, content=struct.pack(">I", len(text)) + zlib.compress(text)))
    assert dict(read_resources(path))["a/b.svg"] == text


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"GIF89a" + bytes(40), "does not begin"),
        (collection(flags=4), "Zstandard"),
        (collection()[:60], "no Qt resource"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_name(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "odd.rcc"
    path.write_bytes(content)
    with pytest.raises(vl.ConfigError, match=rf"odd\.rcc.*{why}|odd\.rcc is {why}"):
        dict(read_resources(path))
