"""What an image may be given as, and the encoded file behind it."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import IO, Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image

from preprocessing import fetch
from preprocessing.errors import ImageError, brief
from preprocessing.fetch import is_url
from preprocessing.formats import begins_as_image
from preprocessing.lazy import LazyImage
from preprocessing.locks import lock_of

ImageSource: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | IO[bytes]
    | Mapping[str, Any]
    | Image.Image
    | LazyImage
    | np.ndarray
    | torch.Tensor
)
"""An image by name: a path (`~` is the home folder) or an http(s), file: or data: URL. A file of that name wins.
Encoded: a file's bytes, the same as base64 text, a file opened in binary mode, or `{"bytes": ..., "path": ...}` as data
sets have it, either of which may be None. Decoded: a Pillow image or an array. A `LazyImage` is made when it is due.

Arrays are [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA); tensors also [1, H, W], [3, H, W] or [4, H, W]. Their
dtype is uint8; uint16 with white 65535; bool with white True; or floating point with white 1.0.
"""

Kind: TypeAlias = Literal["path", "url", "base64"]

# Of 40 characters or more: no image is smaller than 30 bytes.
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{40,}={0,2}\s*|[A-Za-z0-9_\-\s]{40,}={0,2}\s*")
_LONGEST_PATH = 4096


def kind_of(source: str) -> Kind:
    """What the name of an image is. An existing file or folder is a path, whatever it looks like."""
    if len(source) <= _LONGEST_PATH and os.path.exists(local_path(source)):
        return "path"
    if is_url(source):
        return "url"
    return "base64" if _BASE64.fullmatch(source) else "path"


def local_path(path: str | os.PathLike[str] | os.PathLike[bytes]) -> str:
    """A path as the system takes it: `~` is the home folder, unless there is a file of that name."""
    name = os.fsdecode(path)
    if not name.startswith("~") or "\0" in name or os.path.exists(name):
        return name
    return os.path.expanduser(name)


def label_of(source: ImageSource) -> str | None:
    """What the user knows the image by, if it has a name of its own."""
    if isinstance(source, Mapping):
        source = source.get("path") or b""
    elif isinstance(source, Image.Image):
        source = getattr(source, "filename", b"")
    elif not isinstance(source, str | os.PathLike):
        source = getattr(source, "name", b"")  # of an open file; standard input's is a number
    if not isinstance(source, str | os.PathLike) or not (text := os.fsdecode(source)):
        return None
    if text[:5].lower() == "data:" or (len(text) > 200 and kind_of(text) == "base64"):
        return None
    return text if len(text) <= 200 else f"{text[:197]}..."


@contextmanager
def open_source(source: ImageSource, label: str) -> Iterator[IO[bytes]]:
    """The encoded file behind `source`: binary, seekable, at its start. Raises ImageError."""
    if isinstance(source, Mapping):
        source = _from_mapping(source, label)
    if isinstance(source, bytes | bytearray | memoryview):
        yield BytesIO(_content(source, label))
    elif isinstance(source, str) and (kind := kind_of(source)) != "path":
        if kind == "base64":
            yield BytesIO(_from_base64(source, label))
        elif source[:5].lower() == "file:":
            with _open_path(from_file_url(source, label), label) as file:
                yield file
        else:
            yield BytesIO(fetch.fetch(source, label))
    elif isinstance(source, str | os.PathLike):
        with _open_path(local_path(source), label) as file:
            yield file
    elif hasattr(source, "read"):
        yield BytesIO(_read(source, label))
    else:
        raise ImageError(
            f"{label}: cannot read an image from {type(source).__name__}; "
            "pass a path, URL, data URL, base64 text, bytes, binary file, PIL image or array"
        )


@contextmanager
def _open_path(path: str, label: str) -> Iterator[IO[bytes]]:
    try:
        if not os.path.exists(path):
            raise ImageError(f"{label}: no such file")
        if not os.path.isfile(path):
            raise ImageError(f"{label}: not a file; pass the path of an image")
        file = open(path, "rb")  # noqa: SIM115  (what the caller does inside must not look like a failure to open)
    except (OSError, ValueError) as error:
        raise ImageError(f"{label}: cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    with file:
        yield file


def _content(source: bytes | bytearray | memoryview, label: str) -> bytes:
    """The bytes of a buffer, of a view with gaps too."""
    try:
        return bytes(source)
    except ValueError as error:
        raise ImageError(f"{label}: the memoryview cannot be read ({error}); pass bytes") from None


def _from_mapping(source: Mapping[str, Any], label: str) -> bytes | str | os.PathLike[str]:
    """Of `{"bytes": ..., "path": ...}` the bytes, or else the path."""
    content, path = source.get("bytes"), source.get("path")
    if isinstance(content, bytes | bytearray | memoryview):
        return _content(content, label)
    if content is None and isinstance(path, str | os.PathLike):
        return path
    keys = ", ".join(map(brief, source)) or "no key"
    raise ImageError(f'{label}: expected {{"bytes": ..., "path": ...}}, either of which may be None; got {keys}')


def _from_base64(text: str, label: str) -> bytes:
    if len(text) > 2 * fetch.MAX_BYTES:
        raise ImageError(f"{label}: larger than the limit of {fetch.MAX_BYTES >> 20} MiB")
    joined = "".join(text.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        content = base64.b64decode(joined + "=" * (-len(joined) % 4), validate=True)
    except binascii.Error:
        content = b""
    if not begins_as_image(content[:16]):
        raise ImageError(f"{label}: no such file, and read as base64 it is not an image")
    return content


def from_file_url(url: str, label: str) -> str:
    """The path of `file:///path` or `file://localhost/path`; `?` and `#` belong to it. Raises ImageError."""
    rest = url[5:]
    host, path = "", rest
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        path = slash + path
    if host.lower() not in ("", "localhost"):
        raise ImageError(f"{label}: file URLs name files of this machine, not of {host!r}; write file:///path")
    try:
        path = os.fsdecode(urllib.parse.unquote_to_bytes(os.fsencode(path)))
    except ValueError as error:
        raise ImageError(f"{label}: not a URL ({error})") from None
    if not path.startswith("/") or re.match(r"/?[A-Za-z]:[/\\]", path):
        raise ImageError(f"{label}: expected an absolute path such as file:///home/me/photo.jpg")
    return path


def _read(file: Any, label: str) -> bytes:
    """All of an open file, from its start if it can be rewound, and where it stood is where it will stand.

    So one file can be read again, and by several threads.
    """
    if isinstance(file, io.TextIOBase):
        raise ImageError(f'{label}: the file is open as text; open it in binary mode, open(path, "rb")')
    with lock_of(file):
        try:
            seekable = file.seekable() if hasattr(file, "seekable") else hasattr(file, "seek")
            before = file.tell() if seekable else 0
            if seekable:
                file.seek(0)
            content = _read_all(file, label)
            if seekable:
                file.seek(before)
        except ImageError:
            raise
        except Exception as error:  # files of other libraries raise what they like
            raise ImageError(f"{label}: the open file cannot be read ({error})") from None
    if not content and not seekable:
        raise ImageError(f"{label}: nothing is left in the stream; read it once and pass its bytes")
    return content


def _read_all(file: Any, label: str) -> bytes:
    content = bytearray()
    while chunk := file.read(2**20):
        if not isinstance(chunk, bytes | bytearray | memoryview):
            raise ImageError(
                f"{label}: read() gave {type(chunk).__name__} and not bytes; "
                'open the file in binary mode, open(path, "rb"), or pass its bytes'
            )
        content += chunk
        if len(content) > fetch.MAX_BYTES:
            raise ImageError(f"{label}: larger than the limit of {fetch.MAX_BYTES >> 20} MiB")
    return bytes(content)


def seen_from(folder: str | os.PathLike[str], source: str) -> str:
    """The name of an image as a file in `folder` means it: a relative path counts from there. Files win, as ever."""
    path = os.path.join(folder, local_path(source))
    return path if (len(source) <= _LONGEST_PATH and os.path.exists(path)) or kind_of(source) == "path" else source
