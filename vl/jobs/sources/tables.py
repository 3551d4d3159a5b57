"""Tables with a row per image: Parquet, CSV and JSON Lines, with a column of paths, URLs or encoded images."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from preprocessing.sources import kind_of, seen_from
from vl.errors import InputError
from vl.jobs.sources.files import File, beside, explained, is_remote, remote, suffix_of
from vl.jobs.sources.names import Picture, Source, broken

TABLE_SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson")
COLUMNS = ("image", "image_path", "path", "file_name", "filename", "file", "url", "image_url", "bytes")
"""Where the images of a table are looked for, if nothing is said: the first of these that it has."""

_ROWS = 64  # of a Parquet file that are held at once: their images may be in them


class _Damaged:
    """A row that cannot be read, and why."""

    def __init__(self, cause: str) -> None:
        self.cause = cause


def table_images(file: File, column: str | None) -> Iterator[Source]:
    """The images of a table, row by row.

    A relative path counts from the table's own folder. An image that is in the table itself is named after its row,
    from 1, as in `cats.parquet:7`. A row that cannot be read or has no image will be an error of its own.

    Args:
        column: where the images are; by default the first of `COLUMNS`.

    Raises:
        InputError: if the file cannot be opened, or has no such column.
    """
    with explained(file.name), file.open() as opened:
        rows = _READERS[suffix_of(file.name)](opened, file.name, column)
        for number, value in enumerate(rows, 1):
            yield _source(file, f"{file.name}:{number}", value)


def listed(folder: str, files: Iterable[str]) -> list[str] | None:
    """The `file_name`s in the metadata of an imagefolder, or None if `folder` is none.

    Raises:
        InputError: if the metadata cannot be read.
    """
    for name in ("metadata.jsonl", "metadata.csv"):
        if name not in files:
            continue
        path = os.path.join(folder, name)
        with explained(path), open(path, "rb") as opened:
            records = _json_records(opened) if name.endswith(".jsonl") else _csv_records(opened)
            first = next(records, None)
            if not isinstance(first, Mapping) or "file_name" not in first:
                return None
            names = [row.get("file_name") if isinstance(row, Mapping) else None for row in chain([first], records)]
        if not all(isinstance(value, str) and value for value in names):
            row = next(number for number, value in enumerate(names, 1) if not (isinstance(value, str) and value))
            raise InputError(f"{path}: row {row} names no image in file_name: mend the metadata")
        return [str(value) for value in names]
    return None


def _source(table: File, name: str, value: Any) -> Source:
    if isinstance(value, _Damaged):
        return broken(name, value.cause)
    if isinstance(value, Mapping):  # as the datasets of Hugging Face have it
        value = value["path"] if value.get("bytes") is None and "path" in value else value.get("bytes")
    if isinstance(value, bytes | bytearray | memoryview):
        content = bytes(value)
        return Picture(name, lambda: content)
    if not isinstance(value, str) or not value:
        kind = "nothing" if value in (None, "") else type(value).__name__
        return broken(name, f"has no image: its column holds {kind}, not a path, URL or bytes")
    try:
        if table.fs is None and not is_remote(value):
            return seen_from(os.path.dirname(table.name), value)
        if table.fs is not None and not is_remote(value) and kind_of(value) == "path":
            value = beside(table.name, value)
        return value if value[:4].lower() in ("http", "file", "data") else remote(value).picture()
    except InputError as error:
        return broken(name, str(error))


def _chosen(names: Iterable[str], column: str | None, table: str) -> str:
    """The column of the images. Raises InputError."""
    had = list(names)
    found = column if column in had else None if column else next((name for name in COLUMNS if name in had), None)
    if found is None:
        wanted = f"column {column!r}" if column else f"column of images ({', '.join(COLUMNS)})"
        raise InputError(f"{table} has no {wanted}: name one with --column. It has {', '.join(map(repr, had))}")
    return found


def _records(records: Iterator[Any], table: str, column: str | None) -> Iterator[Any]:
    """The column's values. The first readable record says which columns there are."""
    chosen: str | None = None
    for record in records:
        if not isinstance(record, Mapping):
            yield record if isinstance(record, _Damaged) else _Damaged("is not a JSON object")
            continue
        chosen = chosen or _chosen(record, column, table)
        yield record.get(chosen)


def _json_records(file: Any) -> Iterator[Any]:
    for line in file:
        if line.isspace():
            continue
        try:
            yield json.loads(line)
        except ValueError as error:
            yield _Damaged(f"is not JSON ({error})")


def _csv_records(file: Any) -> Iterator[Any]:
    reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""))
    while True:
        try:
            row = next(reader, None)
        except (csv.Error, UnicodeDecodeError) as error:
            yield _Damaged(f"cannot be read, nor what follows ({error})")
            return
        if row is None:
            return
        yield row


def _parquet(file: Any, table: str, column: str | None) -> Iterator[Any]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{table} needs pyarrow: pip install 'minimax-vl[jobs]'") from None
    opened = parquet.ParquetFile(file)
    chosen = _chosen(opened.schema_arrow.names, column, table)
    for batch in opened.iter_batches(_ROWS, columns=[chosen]):
        yield from batch.column(0).to_pylist()


_READERS = {
    ".parquet": _parquet,
    ".csv": lambda file, table, column: _records(_csv_records(file), table, column),
    ".jsonl": lambda file, table, column: _records(_json_records(file), table, column),
    ".ndjson": lambda file, table, column: _records(_json_records(file), table, column),
}
