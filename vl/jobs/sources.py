"""Which images a job works on: files, folders and URLs, one name at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from preprocessing import has_image_suffix
from preprocessing.fetch import is_url


def source_key(source: str) -> str:
    """What a row calls its image: the source itself, or the digest of a data URL, which is too long for a name."""
    if source[:5].lower() != "data:":
        return source
    digest = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{source[:100].partition(',')[0]},sha256:{digest}"


def expand_sources(sources: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """Names of the images behind `sources`, in a stable order and without holding them all.

    A file or URL stands for itself, whether it exists or not. A folder stands for the images in it and below, in
    sorted order: every file with a suffix of `preprocessing.IMAGE_SUFFIXES`, except names that begin with a dot. A
    folder that cannot be read is yielded itself, so that it shows up as an error and not as missing images.
    """
    for source in sources:
        name = os.fspath(source)
        if is_url(name):
            yield name
        elif os.path.isdir(name):
            yield from _walk(name)
        else:
            yield str(Path(name))


def _walk(folder: str) -> Iterator[str]:
    unreadable: list[str] = []
    for parent, folders, files in os.walk(folder, onerror=lambda error: unreadable.append(str(error.filename))):
        yield from unreadable
        unreadable.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if has_image_suffix(name) and not name.startswith("."):
                yield str(Path(parent, name))
    yield from unreadable
