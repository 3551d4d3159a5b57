"""The rows of an output, read back one by one: while a job writes it, after it, and after a crash."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from vl.errors import Error
from vl.jobs.errors import JobError
from vl.jobs.parts import DRAFT, ERRORS, JOURNAL, MANIFEST, id_of
from vl.jobs.prompts import TAKEN
from vl.jobs.rowfile import SUFFIXES, Row
from vl.jobs.sources import row_key
from vl.jobs.sources.files import File, at, is_remote, remote

PARTS = {".parquet": ".parquet", ".wds": ".tar", ".jsonl": ".jsonl", ".ndjson": ".jsonl"}
"""By the suffix of an output that is a folder, that of its parts."""

_PART = re.compile(r"part-\d{5,}")
_TAIL = 4096  # bytes by whose end a file is known again: a row has its seconds in it


@dataclass(frozen=True)
class Stored:
    """A row of an output.

    Attributes:
        id: as `vl.jobs.parts.id_of` has it.
        image: its encoded file, where the output has that in it; called it raises InputError.
    """

    id: bytes
    row: Row
    image: Callable[[], bytes] | None = None

    @classmethod
    def of(cls, row: Row, image: Callable[[], bytes] | None = None) -> Stored:
        return cls(id_of(row_key(row)), row, image)

    @property
    def failed(self) -> bool:
        return "error" in self.row

    @property
    def texts(self) -> dict[str, str]:
        """Answers by their columns."""
        prompt = self.row.get("prompt")
        columns = list(prompt) if isinstance(prompt, dict) else ["caption"]
        return {name: self.row[name] for name in columns if isinstance(self.row.get(name), str)}

    @property
    def values(self) -> dict[str, Any]:
        """What a schema's columns hold."""
        own = {*TAKEN, *self.texts}
        return {name: value for name, value in self.row.items() if name not in own}


class Rewritten(JobError):
    """A job took rows away, or started again, while they were read: another look finds them whole."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} was written again while its rows were read: try again, or when the job has ended")


def stored_rows(out: str | os.PathLike[str]) -> Iterator[Stored]:
    """Every row of an output once, the last one of an image, all as of one moment; nothing is locked or written.

    Memory grows with the error rows of a `.jsonl` file alone.

    Raises:
        Rewritten: if that moment's rows are gone before all are read; what was yielded is of no use then.
        JobError: if there is no such output, or it holds something else, or cannot be read.
    """
    name = os.fspath(out)
    suffix = os.path.splitext(name.rstrip("/"))[1].lower()
    if suffix not in PARTS:
        raise JobError(f"{name} is no output of a job: those are named like captions.jsonl, .parquet or .wds")
    try:
        if is_remote(name):
            before = _listed(name, PARTS[suffix])
            with _unchanged(name, lambda: before.items() <= _listed(name, PARTS[suffix]).items()):
                yield from _parts([at(remote(name).fs, path) for path in before], {})
        elif suffix in SUFFIXES and not Path(name).is_dir():
            yield from _lines(Path(name))
        else:
            folder = Path(name)
            journal = folder / JOURNAL
            # Before the parts: rows that become one meanwhile are in both. A bucket's copy has no journal.
            waiting = {row.id: row for row in _lines(journal)} if journal.exists() else {}
            yield from _parts([_Part.of(folder / part) for part in _committed(folder, PARTS[suffix])], waiting)
    except Error:
        raise
    except FileNotFoundError as error:
        raise JobError(f"cannot read {name}: there is no {error.filename or name}") from None
    except Exception as error:  # of a file system, of Parquet and of tar
        raise JobError(f"cannot read {name}: {type(error).__name__}: {error}") from error


@contextmanager
def _unchanged(name: str, check: Callable[[], bool]) -> Iterator[None]:
    """Raises Rewritten at the end, or in the place of an error, if what was read is not there as it was."""
    try:
        yield
    except Exception:
        if check():
            raise
    else:
        if check():
            return
    raise Rewritten(name)


def _listed(url: str, suffix: str) -> dict[str, Any]:
    """The parts in a bucket: what is known of each by its path."""
    place = remote(url)
    place.fs.invalidate_cache()
    found = {info["name"].rpartition("/")[2]: info for info in place.fs.ls(place.path, detail=True)}
    return {f"{place.path.rstrip('/')}/{name}": found[name] for name in _in_order(list(found), suffix)}


def _committed(folder: Path, suffix: str) -> list[str]:
    """Names of a folder's parts: by its manifest, an entry in which is the commit; where there is none, its files."""
    manifest = folder / MANIFEST
    listed = _in_order([path.name for path in folder.iterdir()], suffix)
    if not manifest.exists():
        return listed
    try:
        with closing(sqlite3.connect(f"{manifest.absolute().as_uri()}?mode=ro", uri=True)) as db:
            return [f"part-{number:05}{suffix}" for (number,) in db.execute("SELECT number FROM parts ORDER BY number")]
    except sqlite3.Error:  # a crash left what only a writer can mend
        return listed


@dataclass(frozen=True)
class _Part(File):
    """A part in a folder; `known` tells it from another that has its name later."""

    known: tuple[int, int] | None = None

    @classmethod
    def of(cls, path: Path) -> _Part:
        with cls(str(path)).open() as file:
            return cls(str(path), known=_known(file))

    def open(self) -> IO[bytes]:
        path = Path(self.name)
        for name in (path, path.with_name(DRAFT.format(path.name)), path):  # it may be renamed just now
            with suppress(FileNotFoundError):
                file = name.open("rb")
                if self.known in (None, _known(file)):
                    return file
                file.close()
        raise Rewritten(str(path.parent))


def _known(file: IO[bytes]) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_mtime_ns


def _in_order(names: list[str], suffix: str) -> list[str]:
    """Those of parts."""
    found = (name for name in names if name.endswith(suffix) and _PART.fullmatch(name.removesuffix(suffix)))
    return sorted(found, key=lambda name: (len(name), name))


def _parts(files: list[File], waiting: dict[bytes, Stored]) -> Iterator[Stored]:
    """Rows of parts, and those that wait for theirs, which are newer."""
    for file in files:
        with file.open() as opened:
            for stored in _READERS[os.path.splitext(file.name)[1]](opened, file):
                if stored.id not in waiting:
                    yield stored
    yield from waiting.values()


def _lines(path: Path) -> Iterator[Stored]:
    """Rows of a file that may grow meanwhile, but for errors that a later row of their image replaces."""
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        tail = os.pread(file.fileno(), _TAIL, max(end - _TAIL, 0))
        with _unchanged(str(path), lambda: os.pread(file.fileno(), len(tail), max(end - _TAIL, 0)) == tail):
            last: dict[bytes, int] = {}  # by id, where the row is that counts, if there is an error among several
            for number, stored in enumerate(_of_lines(file, end)):
                if stored.failed or stored.id in last:
                    last[stored.id] = number
            file.seek(0)
            for number, stored in enumerate(_of_lines(file, end)):
                if last.get(stored.id, number) == number:
                    yield stored


def _of_lines(file: IO[bytes], end: int) -> Iterator[Stored]:
    """Whole lines that begin before `end`; a torn one is the last."""
    while file.tell() < end and (line := file.readline()).endswith(b"\n"):
        row = json.loads(line)
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise JobError(f"{file.name} is not a file of captions: {line[:60]!r} is no row")
        yield Stored.of(row)


def _of_json_part(file: IO[bytes], _: File) -> Iterator[Stored]:
    return (Stored.of(json.loads(line)) for line in file)


def _of_table(file: IO[bytes], _: File) -> Iterator[Stored]:
    from vl.jobs.parquet import records

    for id, row in records(file):
        yield Stored(id, row)


def _of_shard(file: IO[bytes], whole: File) -> Iterator[Stored]:
    image: tuple[str, Callable[[], bytes]] = "", bytes
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            key, _, kind = member.name.partition(".")
            if member.name == ERRORS or kind == "json":
                content = tar.extractfile(member)
                assert content is not None
                for line in content.read().splitlines():
                    yield Stored.of(json.loads(line), image[1] if image[0] == key else None)
            elif not kind.endswith("txt"):
                image = key, partial(whole.read, member.offset_data, member.size)


_READERS = {".parquet": _of_table, ".tar": _of_shard, ".jsonl": _of_json_part}
