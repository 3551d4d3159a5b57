"""Files here and behind URLs, read alike. Buckets and web servers are fsspec's; it comes with the extra `jobs`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlsplit

from preprocessing.sources import local_path
from vl.errors import Error, InputError
from vl.jobs.sources.names import Picture

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")


@dataclass(frozen=True)
class File:
    """A file: on this machine, or at `path` of the fsspec file system `fs`, where `name` is its URL."""

    name: str
    fs: Any = None
    path: str = ""

    def open(self) -> IO[bytes]:
        """Binary and seekable. Raises OSError or what the file system raises."""
        return open(local_path(self.name), "rb") if self.fs is None else self.fs.open(self.path, "rb")

    def within(self, name: str) -> File:
        """A file in this folder."""
        return (
            File(os.path.join(self.name, name)) if self.fs is None else at(self.fs, f"{self.path.rstrip('/')}/{name}")
        )

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start`. Raises InputError."""
        with explained(self.name):
            if self.fs is not None:
                content = self.fs.cat_file(self.path, start=start, end=start + size)
            else:
                with self.open() as file:
                    file.seek(start)
                    content = file.read(size)
        if len(content) > size:
            raise InputError(f"{self.name}: its server sends whole files only: download it first")
        if len(content) < size:
            raise InputError(f"{self.name} ends within an image: write or download it again")
        return content

    def picture(self) -> Picture:
        """The file as an image of the job."""
        return Picture(self.name, self.read_all)

    def read_all(self) -> bytes:
        """Raises InputError."""
        with explained(self.name):
            return self.fs.cat_file(self.path)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Errors of a file system, whatever they are, as an InputError that names the file."""
    try:
        yield
    except Error:
        raise
    except Exception as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{name}: cannot be read ({why})") from error


def is_remote(name: str) -> bool:
    """Whether `name` is a URL such as s3://bucket/a.png. A file of that name wins."""
    return _SCHEME.match(name) is not None and not os.path.exists(local_path(name))


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case; of an http(s) URL without its query."""
    return os.path.splitext(file_of(name))[1].lower()


def beside(name: str, relative: str) -> str:
    """The URL of a file that the file at the URL `name` names by a path: seen from its folder, or from the root."""
    scheme, _, rest = file_of(name).partition("://")
    host, *folders = rest.split("/")[:-1]
    steps = [] if relative.startswith("/") else folders
    for step in relative.removeprefix("/").split("/"):
        if step == "..":
            steps = steps[:-1]
        elif step != ".":
            steps = [*steps, step]
    return "/".join((f"{scheme}://{host}", *steps))


def file_of(name: str) -> str:
    """The name of a file; of an http(s) URL without its query."""
    return urlsplit(name)._replace(query="", fragment="").geturl() if name[:4].lower() == "http" else name


def remote(url: str) -> File:
    """The file or folder behind a URL.

    Raises:
        InputError: if fsspec or the package for that scheme is missing, there is no such scheme, or a server that has
            to be reached at once is not.
    """
    try:
        import fsspec
    except ImportError:
        raise InputError(f"{url} is read through fsspec: pip install 'minimax-vl[jobs]'") from None
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise InputError(f"{url}: {error}; pip install 'minimax-vl[jobs]' has s3 and http(s)") from None
    except Exception as error:  # of the file system, which may look for its server
        raise InputError(f"{url} cannot be read: {str(error) or type(error).__name__}") from None
    return File(url, fs, path)


def exists(file: File) -> bool:
    """Whether there is a file or folder of that very name behind a URL. Raises InputError."""
    with explained(file.name):
        return bool(file.fs.exists(file.path))


def matches(pattern: File) -> list[File]:
    """What a URL with `*` stands for, sorted. Raises InputError."""
    with explained(pattern.name):
        return [at(pattern.fs, path) for path in sorted(pattern.fs.glob(pattern.path))]


def at(fs: Any, path: str) -> File:
    """The file at a path of an fsspec file system."""
    return File(fs.unstrip_protocol(path), fs, path)
