"""From what the user names to the images behind it, one at a time."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from glob import has_magic
from pathlib import Path
from typing import Any

from preprocessing.sources import kind_of, local_path
from vl.errors import InputError
from vl.jobs.prompts import Prompts
from vl.jobs.sources.files import File, exists, explained, file_of, is_remote, matches, remote, suffix_of
from vl.jobs.sources.folders import matches_here, walk_bucket, walk_folder
from vl.jobs.sources.names import Asked, Source, broken, source_key
from vl.jobs.sources.packed import PACKED, unpacked_name
from vl.jobs.sources.passed import Passed
from vl.jobs.sources.shards import shard_images
from vl.jobs.sources.tables import TABLE_SUFFIXES, Columns, table_images

Tell = Callable[[str], None]


def expand_sources(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    tell: Tell | None = None,
    *,
    column: str | None = None,
    prompts: Prompts | None = None,
    total: Passed | None = None,
) -> Iterator[Source]:
    """The images behind `sources`, in a stable order and without holding them all.

    - A file or URL stands for itself, whether it exists or not. An existing file or folder goes before a URL or
      pattern of that name, and `~` is the home folder.
    - A folder stands for the images in it and below: see `walk_folder`.
    - `*`, `?`, `[...]` and `**` stand for the files that match, if no file has that name; see `matches_here`.
    - A `.tar` file stands for the images in it, a `.parquet`, `.csv`, `.jsonl` or `.ndjson` file for those of its
      rows: see `shard_images` and `table_images`.
    - All of these may be behind a URL that fsspec knows, such as `s3://bucket/photos/`; over http(s), files only.

    Args:
        sources: several, or one.
        tell: hears after each source of the files that were passed over in it, if any: how many of each suffix.
        column: where the tables have their images; by default the first of `COLUMNS` that they have.
        prompts: may name columns; each image is then `Asked` with its own.
        total: to which all files that were passed over are added.

    Raises:
        InputError: if a source is no name, a table lacks a column, an image is of no table and prompts name columns, or
            a URL's package is missing.
    """
    columns = Columns(column, prompts)
    for source in several(sources):
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else None
        if not isinstance(name, str):
            raise InputError(
                f"a source must be a path, URL or pattern, not {type(source).__name__}: images that are in memory are "
                "for model.caption, or for a Parquet table's column of bytes"
            )
        passed = Passed()
        for found in _expand(name, passed, columns):
            if columns.fields and not isinstance(found, Asked):
                field = columns.fields[0]
                raise InputError(
                    f"{source_key(found)} is in no table that has the column {field!r}, which the prompt names: write "
                    f"{{{{{field}}}}} for the text {{{field}}}"
                )
            yield found
        if total is not None:
            total.update(passed)
        if tell is not None and passed:
            tell(f"{name}: passed over {passed}")


def several(sources: str | os.PathLike[str] | Iterable[Any]) -> Iterable[Any]:
    """Sources, of which a single one may stand by itself: its letters are no sources."""
    return [sources] if isinstance(sources, str | os.PathLike) else sources


def is_table(name: str) -> bool:
    """Whether a source stands for the rows of a table, by its name."""
    return suffix_of(name) in TABLE_SUFFIXES


def _expand(name: str, passed: Passed, columns: Columns) -> Iterator[Source]:
    if is_remote(name):
        yield from _expand_remote(name, passed, columns)
    elif kind_of(name) != "path":
        yield name
    elif os.path.isdir(path := local_path(name)):
        yield from walk_folder(path, passed, columns)
    elif has_magic(path) and not os.path.exists(path) and (found := matches_here(path)):
        for match in found:
            if _is_container(match) or os.path.isdir(match) or passed.takes(match):
                yield from _expand(match, passed, columns)
    elif _is_container(path) and os.path.isfile(path):
        yield from _contents(File(str(Path(path))), passed, columns)
    else:
        yield str(Path(path))


def _expand_remote(url: str, passed: Passed, columns: Columns) -> Iterator[Source]:
    web = url[:4].lower() == "http"
    if web or url[:5].lower() == "file:":  # a single image is fetched as everywhere else
        path = url if web else urllib.parse.unquote(urllib.parse.urlsplit(url).path)
        several = os.path.isdir(path) or (has_magic(path) and not os.path.exists(path))
        if not _is_container(url) and (web or not several):
            yield url
            return
    place = remote(url)
    if not web and has_magic(url) and not exists(place) and (found := matches(place)):
        for file in found:
            if _is_container(file.name) or passed.takes(file.name):
                yield from _one(file, passed, columns)
        return
    with explained(url):
        is_folder = not web and place.fs.isdir(place.path)
    yield from walk_bucket(place, passed, columns) if is_folder else _one(place, passed, columns)


def _one(file: File, passed: Passed, columns: Columns) -> Iterator[Source]:
    if _is_container(file.name):
        yield from _contents(file, passed, columns)
    else:
        yield file.picture()


def _contents(file: File, passed: Passed, columns: Columns) -> Iterator[Source]:
    """What is in a tar file or table. One that cannot be opened is a row with that error."""
    suffix = suffix_of(file.name)
    if suffix in TABLE_SUFFIXES:
        yield from table_images(file, columns)
    elif suffix == ".tar":
        yield from shard_images(file, passed)
    else:
        yield broken(file.name, PACKED)


def _is_container(name: str) -> bool:
    """Whether a source of this name is looked into: it holds images, or would if it were unpacked."""
    return suffix_of(unpacked_name(file_of(name))) in (".tar", *TABLE_SUFFIXES)
