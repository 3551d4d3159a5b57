"""Tables with a row per image: Parquet, CSV and JSON Lines, with a column of paths, URLs or encoded images."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

from preprocessing.fetch import MAX_BYTES
from preprocessing.sources import kind_of, seen_from
from vl.errors import InputError
from vl.jobs.prompts import Empty, Prompts
from vl.jobs.sources.files import File, beside, explained, is_remote, remote, suffix_of
from vl.jobs.sources.names import Asked, Picture, Source, broken, held, source_key
from vl.jobs.sources.packed import why_not_read

TABLE_SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson")
COLUMNS = ("image", "image_path", "path", "file_name", "filename", "file", "url", "image_url", "bytes")
"""Where the images of a table are looked for, if nothing is said: the first of these that it has."""

_ROWS = 64  # of a Parquet file that are held at once: their images may be in them


@dataclass(frozen=True)
class Columns:
    """What is read of tables.

    Attributes:
        image: the column of the images; by default the first of `COLUMNS`.
        prompts: name other columns, if they have fields.
    """

    image: str | None = None
    prompts: Prompts | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that prompts name."""
        return self.prompts.fields if self.prompts else ()

    def chosen(self, names: Iterable[str], table: str) -> str:
        """The column of the images in a table with these. Raises InputError for that, or one of `fields`, missing."""
        had = list(names)
        known = [self.image] if self.image is not None else COLUMNS
        found = next((name for name in known if name in had), None)
        if found is None:
            wanted = f"column of images ({', '.join(COLUMNS)})" if self.image is None else f"column {self.image!r}"
            raise InputError(f"{table} has no {wanted}: name one with --column. {_has(had)}")
        for name in (found, *self.fields):
            if had.count(name) > 1:
                raise InputError(f"{table} has {had.count(name)} columns {name!r}: rename all but one")
        for field in self.fields:
            if field not in had:
                raise InputError(
                    f"{table} has no column {field!r}, which the prompt names: write {{{{{field}}}}} for the text "
                    f"{{{field}}}. {_has(had)}"
                )
        return found

    def asked(self, source: str | Picture, record: Mapping[str, Any] | None) -> Source:
        """The source with its own prompt, if prompts name columns. No record: its row cannot be read."""
        if self.prompts is None or not self.prompts.fields:
            return source
        try:
            return Asked(source, None if record is None else self.prompts.told(self.prompts.fill(record)))
        except Empty as error:
            earlier = source.earlier if isinstance(source, Picture) else ""
            return Asked(broken(source_key(source), str(error), earlier), None)


def _has(names: Sequence[str]) -> str:
    """Which columns a table has, and why that may be but one."""
    alone = len(names) == 1 and next((mark for mark in ";\t|" if mark in names[0]), None)
    hint = f": they are parted by {alone!r}, and a CSV file's are by commas" if alone else ""
    return f"It has {', '.join(map(repr, names))}{hint}"


class _Damaged:
    """A row that cannot be read, and why."""

    def __init__(self, cause: str) -> None:
        self.cause = cause


_Cell = tuple[str, Any, Mapping[str, Any] | None]
"""The column of the images, where it is known, what a row has there, and the row; None if it cannot be read."""


def table_images(file: File, columns: Columns) -> Iterator[Source]:
    """The images of a table, row by row.

    A relative path counts from the table's own folder. An image that is in the table itself is named after its row,
    from 1, and its column, as in `cats.parquet:7:image`. A row that cannot be read or has no image will be an error of
    its own, and so will a file that is compressed.

    Raises:
        InputError: if the file cannot be opened, or lacks a column.
    """
    with explained(file.name), file.open() as opened:
        if (cause := why_not_read(opened)) is not None:
            yield columns.asked(broken(file.name, cause), None)
            return
        cells = _READERS[suffix_of(file.name)](opened, file.name, columns)
        for number, (column, value, record) in enumerate(cells, 1):
            yield columns.asked(_source(file, f"{file.name}:{number}", column, value), record)


def listed(folder: File, files: Iterable[str], columns: Columns) -> list[tuple[str, Mapping[str, Any]]] | None:
    """Each `file_name` in the metadata of an imagefolder, with the columns that prompts name; None if it is none.

    Raises:
        InputError: if the metadata cannot be read, or lack a column.
    """
    for name in ("metadata.jsonl", "metadata.csv"):
        if name not in files:
            continue
        file = folder.within(name)
        path = file.name
        with explained(path), file.open() as opened:
            records = _json_records(opened) if name.endswith(".jsonl") else _csv_records(*_csv_reader(opened))
            first = next(records, None)
            if isinstance(first, _Damaged):
                raise InputError(f"{path}: row 1 {first.cause}: mend the metadata")
            if not isinstance(first, Mapping) or "file_name" not in first:
                return None
            Columns("file_name", columns.prompts).chosen(first, path)
            return [_listed(path, number, row, columns) for number, row in enumerate(chain([first], records), 1)]
    return None


def _listed(path: str, number: int, row: Any, columns: Columns) -> tuple[str, Mapping[str, Any]]:
    name = row.get("file_name") if isinstance(row, Mapping) else None
    if not isinstance(name, str) or not name:
        raise InputError(f"{path}: row {number} names no image in file_name: mend the metadata")
    return name, {field: row.get(field) for field in columns.fields}


def _source(table: File, row: str, column: str, value: Any) -> str | Picture:
    """Args: row: what the table's row is called, as its image was by earlier versions, whatever its column."""
    if isinstance(value, _Damaged):
        return broken(row, value.cause)
    name = f"{row}:{column}"
    if isinstance(value, Mapping):  # as the datasets of Hugging Face have it
        value = value["path"] if value.get("bytes") is None and "path" in value else value.get("bytes")
    if isinstance(value, bytes | bytearray | memoryview):
        return held(name, bytes(value), row)
    if not isinstance(value, str) or not value:
        kind = "nothing" if value in (None, "") else type(value).__name__
        return broken(name, f"has no image: its column holds {kind}, not a path, URL or bytes", row)
    try:
        if table.fs is None and not is_remote(value):
            return seen_from(os.path.dirname(table.name), value)
        if table.fs is not None and not is_remote(value) and kind_of(value) == "path":
            value = beside(table.name, value)
        return value if value[:4].lower() in ("http", "file", "data") else remote(value).picture()
    except InputError as error:
        return broken(name, str(error), row)


def _json(file: Any, table: str, columns: Columns) -> Iterator[_Cell]:
    """The first readable record says which columns there are."""
    chosen: str | None = None
    for record in _json_records(file):
        if not isinstance(record, Mapping):
            yield "", record if isinstance(record, _Damaged) else _Damaged("is not a JSON object"), None
            continue
        chosen = chosen or columns.chosen(record, table)
        yield chosen, record.get(chosen), record


def _csv(file: Any, table: str, columns: Columns) -> Iterator[_Cell]:
    reader, lines = _csv_reader(file)
    try:
        names = reader.fieldnames
    except csv.Error as error:
        yield "", _unreadable(error), None
        return
    chosen = columns.chosen(names, table) if names else ""
    for record in _csv_records(reader, lines):
        yield (chosen, record, None) if isinstance(record, _Damaged) else (chosen, record.get(chosen), record)


def _json_records(file: Any) -> Iterator[Any]:
    for line in file:
        if line.isspace():
            continue
        try:
            yield json.loads(line)
        except ValueError as error:
            yield _Damaged(f"is not JSON ({error})")
        except RecursionError:
            yield _Damaged("is not JSON that can be read: it is nested too deeply")


def _csv_reader(file: Any) -> tuple[csv.DictReader[str], _Lines]:
    """Bytes that are no UTF-8 come as the system has them in names of files, so that an odd name is no end of all."""
    csv.field_size_limit(max(csv.field_size_limit(), 2 * MAX_BYTES))  # of the process; an image may be there as base64
    lines = _Lines(io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline=""))
    reader: csv.DictReader[str] = csv.DictReader(lines)
    return reader, lines


class _Lines:
    """Lines of a file, and whether it has `ended`: a row that wants more than there are is within quotes."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines, self.ended = iter(lines), False

    def __iter__(self) -> Iterator[str]:
        yield from self._lines
        self.ended = True


def _csv_records(reader: csv.DictReader[str], lines: _Lines) -> Iterator[Any]:
    """A quote that nothing closes makes all that follows a part of its field: these rows are lost, which is said."""
    if lines.ended and reader.fieldnames:
        yield _unclosed(0)
    before = reader.line_num
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield _unreadable(error)
            return
        if row is None:
            return
        if lines.ended:  # and had it been whole, no more would have been asked for
            yield _unclosed(before)
            return
        before = reader.line_num
        yield row


def _parquet(file: Any, table: str, columns: Columns) -> Iterator[_Cell]:
    """Rows that are damaged are so by groups, and each is one of its own; a file without its end has one."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{table} needs pyarrow: pip install 'minimax-vl[jobs]'") from None
    try:
        opened = parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        if _of_the_disk(error):
            raise
        yield "", _unreadable(error), None
        return
    chosen = columns.chosen(opened.schema_arrow.names, table)
    wanted = list(dict.fromkeys([chosen, *columns.fields]))
    for group in range(opened.num_row_groups):
        left = opened.metadata.row_group(group).num_rows
        try:
            for batch in opened.iter_batches(_ROWS, row_groups=[group], columns=wanted):
                for record in _records(batch):
                    yield (chosen, record, None) if isinstance(record, _Damaged) else (chosen, record[chosen], record)
                left -= len(batch)
        except (pyarrow.ArrowException, OSError) as error:
            if _of_the_disk(error):
                raise
            yield from repeat((chosen, _Damaged(f"cannot be read ({error}): write the table again"), None), left)


def _records(rows: Any) -> list[Any]:
    """Of an Arrow batch. What Python cannot hold, such as text that is no UTF-8, costs its row and no other."""
    try:
        return rows.to_pylist()
    except (ValueError, OverflowError) as error:
        if len(rows) == 1:
            return [_Damaged(f"cannot be read ({error})")]
        return [record for number in range(len(rows)) for record in _records(rows.slice(number, 1))]


def _of_the_disk(error: Exception) -> bool:
    """Or of the network, and not of what a file holds: pyarrow has OSErrors of its own."""
    return getattr(error, "errno", None) is not None


def _unclosed(line: int) -> _Damaged:
    return _Damaged(f"cannot be read, nor what follows (after line {line:,} is a quote that nothing closes)")


def _unreadable(error: Exception) -> _Damaged:
    return _Damaged(f"cannot be read, nor what follows ({error})")


_READERS = {".parquet": _parquet, ".csv": _csv, ".jsonl": _json, ".ndjson": _json}
