"""Folders of this machine: the images in them and below, each once however they are linked."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from glob import escape, glob
from pathlib import Path
from typing import Any

from vl.jobs.sources.files import File, at, beside, explained, remote
from vl.jobs.sources.names import Source
from vl.jobs.sources.passed import Passed
from vl.jobs.sources.tables import Columns, listed


def walk_folder(root: str, passed: Passed, columns: Columns) -> Iterator[Source]:
    """Images in `root` and below, in sorted order: the files of an image's suffix whose names begin with no dot.

    Linked folders are followed, each once, and none that the walk meets under its own name or that it is in. A folder
    that cannot be read is yielded itself, so that it shows up as an error and not as missing images. A folder with a
    `metadata.jsonl` or `metadata.csv` that has `file_name`, Hugging Face's imagefolder, stands for the images named
    there, present or not, and for no others.
    """
    unreadable: list[str] = []
    links = _Links(root)
    walk = os.walk(root, onerror=lambda error: unreadable.append(str(error.filename)), followlinks=True)
    for parent, folders, files in walk:
        yield from unreadable
        unreadable.clear()
        if (rows := listed(File(parent), files, columns)) is not None:
            yield from _imagefolder(parent, rows, passed, columns)
            folders.clear()
            continue
        visible = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in visible if links.follow(os.path.join(parent, name))]
        for name in sorted(files):
            if passed.takes(name):
                yield str(Path(parent, name))
    yield from unreadable


def _imagefolder(
    folder: str, rows: Sequence[tuple[str, Mapping[str, Any]]], passed: Passed, columns: Columns
) -> Iterator[Source]:
    """The images that the metadata of `folder` name; others in it and below are counted as passed over."""
    yield from (columns.asked(str(Path(folder, name)), record) for name, record in rows)
    for parent, _, files in os.walk(folder):
        _not_named([os.path.relpath(os.path.join(parent, name), folder) for name in files], rows, passed)


def _not_named(inside: Iterable[str], rows: Sequence[tuple[str, Mapping[str, Any]]], passed: Passed) -> None:
    """Count the files of an imagefolder, by their paths from there, that its metadata do not name."""
    named = {posixpath.normpath(name) for name, _ in rows}
    passed["not in the metadata"] += sum(
        passed.takes(name) for name in map(posixpath.normpath, inside) if name not in named
    )
    passed += Passed()  # drops a count of 0


def walk_bucket(folder: File, passed: Passed, columns: Columns) -> Iterator[Source]:
    """`walk_folder` of a folder behind a URL, where no links are known. Raises InputError."""
    with explained(folder.name):
        for parent, folders, files in folder.fs.walk(folder.path):
            here = at(folder.fs, parent)
            if (rows := listed(here, files, columns)) is not None:
                for name, record in rows:
                    yield columns.asked(remote(beside(here.within("_").name, name)).picture(), record)
                for below, _, inside in folder.fs.walk(parent):
                    _not_named([posixpath.relpath(f"{below}/{name}", parent) for name in inside], rows, passed)
                folders.clear()
                continue
            folders.sort()
            for name in sorted(files):
                if passed.takes(name):
                    yield here.within(name).picture()


def matches_here(pattern: str) -> list[str]:
    """The files and folders that a pattern stands for, sorted.

    `**` follows linked folders as `walk_folder` does: where links go round, files have names without end. A folder that
    cannot be read is among what is found, so that it shows up as an error.
    """
    steps = pattern.split(os.sep)
    if "**" not in steps:
        return sorted(glob(pattern))
    number = steps.index("**")
    top, rest = os.sep.join(steps[:number]), steps[number + 1 :]
    found: set[str] = set()
    for root in glob(f"{top}{os.sep}") if number else [os.curdir]:
        links = _Links(root)
        for parent, folders, _ in os.walk(root, onerror=lambda error: found.add(str(error.filename)), followlinks=True):
            folders[:] = [
                name for name in sorted(folders) if name[0] != "." and links.follow(os.path.join(parent, name))
            ]
            inside = matches_here(os.path.join(escape(parent), *(rest or "*")))
            found.update(name for name in inside if rest or not os.path.isdir(name))
    return sorted(found)


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
