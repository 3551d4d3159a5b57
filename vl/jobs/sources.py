"""Which images a job works on: files, folders and URLs, one name at a time."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from preprocessing import has_image_suffix
from preprocessing.formats import HEIF_SUFFIXES, PLUGIN
from preprocessing.sources import kind_of, local_path

_LONGEST_NAME = 255
_KINDS = 6  # of files passed over that are counted apart

Tell = Callable[[str], None]


def source_key(source: str) -> str:
    """What a row calls its image: the source itself, or the digest of data that are too long for a name."""
    is_data = source[:5].lower() == "data:"
    if not is_data and len(source) <= _LONGEST_NAME:
        return source
    kind = kind_of(source)
    if kind == "path" or (kind == "url" and not is_data):
        return source
    digest = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()
    start = source[:100].partition(",")[0] if is_data else "base64"
    return f"{start},sha256:{digest}"


def expand_sources(sources: Iterable[str | os.PathLike[str]], tell: Tell | None = None) -> Iterator[str]:
    """Names of the images behind `sources`, in a stable order and without holding them all.

    A file or URL stands for itself, whether it exists or not; an existing file or folder goes before a URL of that
    name, and `~` is the home folder. A folder stands for the images in it and below, in sorted order: every file that
    `preprocessing.has_image_suffix` takes, except names that begin with a dot. Linked folders are followed, each once,
    and none that the walk meets under its own name or that it is in. A folder that cannot be read is yielded itself, so
    that it shows up as an error and not as missing images.

    Args:
        tell: hears after each folder of the files that were passed over there, if any: how many of each suffix.
    """
    for source in sources:
        name = os.fspath(source)
        if kind_of(name) != "path":
            yield name
        elif os.path.isdir(path := local_path(name)):
            passed: Counter[str] = Counter()
            yield from _walk(path, passed)
            if tell is not None and passed:
                tell(f"{name}: passed over {_describe(passed)}")
        else:
            yield str(Path(path))


def _walk(root: str, passed: Counter[str]) -> Iterator[str]:
    """Images in `root`, counting what is `passed` over by its suffix, or as hidden if it begins with a dot."""
    unreadable: list[str] = []
    links = _Links(root)
    walk = os.walk(root, onerror=lambda error: unreadable.append(str(error.filename)), followlinks=True)
    for parent, folders, files in walk:
        yield from unreadable
        unreadable.clear()
        visible = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in visible if links.follow(os.path.join(parent, name))]
        for name in sorted(files):
            if not has_image_suffix(name):
                passed[os.path.splitext(name)[1].lower() or "without a suffix"] += 1
            elif name.startswith("."):
                passed["hidden"] += 1
            else:
                yield str(Path(parent, name))
    yield from unreadable


class _Links:
    """Which folders a walk that follows links goes into, so that it ends and meets no image twice."""

    def __init__(self, root: str) -> None:
        self._root = Path(os.path.realpath(root))
        self._seen = {_identity(root)}

    def follow(self, folder: str) -> bool:
        if os.path.islink(folder) and self._is_elsewhere(Path(os.path.realpath(folder))):
            return False
        try:
            identity = _identity(folder)
        except OSError:
            return True  # the walk will say so
        if identity in self._seen:
            return False
        self._seen.add(identity)
        return True

    def _is_elsewhere(self, target: Path) -> bool:
        """Whether a link's target holds the whole walk, or is met by it under its own name."""
        if self._root.is_relative_to(target):
            return True
        return target.is_relative_to(self._root) and not any(
            part.startswith(".") for part in target.relative_to(self._root).parts
        )


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _describe(passed: Counter[str]) -> str:
    """For example `12 files: 10 .txt, 2 .heic (pip install pillow-heif)`."""
    total = passed.total()
    kinds = sorted(passed.items(), key=lambda item: (-item[1], item[0]))
    counts = [f"{n:,} {kind}{f' ({PLUGIN})' if kind in HEIF_SUFFIXES else ''}" for kind, n in kinds]
    if len(kinds) > _KINDS:
        counts[_KINDS:] = [f"{sum(n for _, n in kinds[_KINDS:]):,} others"]
    return f"{total:,} {'file' if total == 1 else 'files'}: {', '.join(counts)}"
