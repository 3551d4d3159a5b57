"""Captions beside the images, as training tools read them: `cat.txt` for `cat.jpg`, each written once."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal, NamedTuple

from preprocessing import IMAGE_SUFFIXES
from preprocessing.sources import kind_of, local_path
from vl.errors import InputError
from vl.files import write_file
from vl.jobs.errors import JobError
from vl.jobs.partfolder import PartFolder
from vl.jobs.rowfile import Row, RowFile, explained
from vl.jobs.sources import Asked, Source, row_key, source_key

Existing = Literal["skip", "overwrite", "append", "prepend"]


@dataclass(frozen=True)
class Beside:
    """How captions become the texts beside the images.

    Attributes:
        existing: what becomes of a text that is there: its image is skipped, and has no row; or it is replaced, or the
            caption comes after or before it.
        prefix, suffix: around every caption.
        separator: between a text and what is added to it.

    Raises:
        InputError: if `existing` is none of these.
    """

    existing: Existing = "skip"
    prefix: str = ""
    suffix: str = ""
    separator: str = " "

    def __post_init__(self) -> None:
        if self.existing not in ("skip", "overwrite", "append", "prepend"):
            raise InputError(f"existing must be skip, overwrite, append or prepend, not {self.existing!r}")

    @property
    def adds(self) -> bool:
        """To what a text holds, after the separator."""
        return self.existing in ("append", "prepend")

    def text(self, answers: Iterable[str], old: bytes | None) -> bytes:
        """What the file is to hold: a line for each prompt, UTF-8. What it held may be in any encoding."""
        new = f"{self.prefix}{chr(10).join(answers)}{self.suffix}".encode("utf-8", "backslashreplace").strip()
        old = (old or b"").strip()
        separator = self.separator.encode() if old else b""
        if self.existing == "append":
            new = old + separator + new
        elif self.existing == "prepend":
            new = new + separator + old
        return new + b"\n"


class _Intent(NamedTuple):
    """A text that is to be written.

    Attributes:
        key: `row_key` of its row, as JSON.
        id: what is done once.
        path: of the text.
        old: the digest of what it held; None: there was none.
        text: what it is to hold.
    """

    key: str
    id: bytes
    path: bytes
    old: bytes | None
    text: bytes


_TABLES = """
CREATE TABLE IF NOT EXISTS job (how TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS done (id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS under_way (key TEXT NOT NULL, id BLOB NOT NULL, path BLOB NOT NULL, old BLOB, text BLOB);
"""


class Texts:
    """An open output whose captions are also written beside their images.

    Before rows are appended, `record` gets what their texts are to hold and what they held, and after it the texts are
    written, each whole. So the next run finishes one that was killed: it writes the texts that were not, of rows that
    are there, and no caption is added twice. `record` also has what is done: an image may come by several names, each
    of which has a row, and its text is written for the first. Only answers to prompts of its own add up.

    Args:
        rows: the output, opened.
        record: the SQLite file of what is done and under way.
        fresh: the output is started again.

    Raises:
        JobError: if the output has rows that were made without texts, or with others; or a file cannot be written.
    """

    def __init__(self, rows: RowFile | PartFolder, record: Path, beside: Beside, *, fresh: bool = False) -> None:
        self._rows, self._record, self._beside = rows, record, beside
        self.prompts, self.find = rows.prompts, rows.find
        self._passed = 0
        if not fresh and rows.rows and not record.exists():
            raise JobError(
                f"{rows.path} holds captions that were not written beside the images: leave --beside out to "
                "continue it, choose another output, or start again with --overwrite"
            )
        with self._changing() as db:
            db.executescript(_TABLES)
        with self._changing() as db:
            self._finish(db, fresh)

    @property
    def skipped(self) -> int:
        """Sources that had a row or a text."""
        return self._rows.skipped + self._passed

    def _finish(self, db: sqlite3.Connection, fresh: bool) -> None:
        """Write what the last run left under way."""
        how, found = asdict(self._beside), db.execute("SELECT how FROM job").fetchone()
        made = json.loads(found[0]) if found else how
        differing = [name for name in how if made.get(name) != how[name] and (name != "separator" or self._beside.adds)]
        if differing and self._rows.rows and not fresh:
            name = differing[0]
            raise JobError(
                f"{self._rows.path} holds captions written beside the images with {name} {made.get(name)!r}, not "
                f"{how[name]!r}: use that to continue it, choose another output, or start again with --overwrite"
            )
        if fresh:
            db.execute("DELETE FROM done")
        else:
            whole = [intent for intent in _under_way(db) if self._rows.captioned(json.loads(intent.key))]
            self._apply(whole)
            _enter(db, whole)
        db.execute("DELETE FROM under_way")
        db.execute("DELETE FROM job")
        db.execute("INSERT INTO job VALUES (?)", (json.dumps(how),))

    def pending(self, sources: Iterable[Source]) -> Iterator[Source]:
        """As `RowFile.pending`. Raises InputError for an image that is no file of this machine."""
        return self._rows.pending(self._wanted(sources))

    def append(self, rows: Iterable[Row]) -> list[Row]:
        """As `RowFile.append`, and write the texts. An image whose text is another's too, or a folder, is an error."""
        batch = [self._checked(row) for row in rows]
        with self._changing() as db:
            _enter(db, _under_way(db))
            intents: dict[bytes, _Intent] = {}
            coming: dict[Path, bytes] = {}  # what texts hold after those
            for row in batch:
                if "error" not in row and not _is_done(db, id := self._id(row)) and id not in intents:
                    intents[id] = self._intent(id, row, coming)
            db.execute("DELETE FROM under_way")
            db.executemany("INSERT INTO under_way VALUES (?, ?, ?, ?, ?)", intents.values())
        written = self._rows.append(batch)
        self._apply(intents.values())
        return written

    def settle(self) -> None:
        """All texts are there: what becomes of them from now on is not this job's."""
        with self._changing() as db:
            _enter(db, _under_way(db))
            db.execute("DELETE FROM under_way")

    def _wanted(self, sources: Iterable[Source]) -> Iterator[Source]:
        for source in sources:
            text = text_of(source)
            if self._beside.existing == "skip" and os.path.exists(text) and not os.path.isdir(text):
                self._passed += 1
            else:
                yield source

    def _checked(self, row: Row) -> Row:
        if "error" in row:
            return row
        if os.path.isdir(text := text_of(row["image"])):
            told = f"a folder has the name of its text: rename {text}"
        elif (other := _namesake(Path(_local(row["image"])))) is not None:
            told = f"its text would be that of {other.name} too: rename one of them"
        else:
            return row
        rest = {name: value for name, value in row.items() if name not in (*self.prompts.answers, "image")}
        return {"image": row["image"], "error": f"{row['image']}: {told}"} | rest

    def _id(self, row: Row) -> bytes:
        """Equal for rows of which one alone is written."""
        own = row_key(row).removeprefix(row["image"]) if self._beside.adds else ""
        return blake2b(os.fsencode(text_of(row["image"])) + b"\0" + own.encode(), digest_size=16).digest()

    def _intent(self, id: bytes, row: Row, coming: dict[Path, bytes]) -> _Intent:
        path = text_of(row["image"])
        old = coming.get(path, path.read_bytes() if os.path.exists(path) else None)
        coming[path] = self._beside.text([row[column] for column in self.prompts.columns], old)
        return _Intent(json.dumps(row_key(row)), id, os.fsencode(path), _digest(old), coming[path])

    def _apply(self, intents: Iterable[_Intent]) -> None:
        for intent in intents:
            path = Path(os.fsdecode(intent.path))
            old = path.read_bytes() if os.path.exists(path) else None
            if _digest(old) == intent.old and old != intent.text:  # else it is done, or someone has written it since
                _written(path, intent.text)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction of the record."""
        with (
            explained(self._record, (OSError, sqlite3.Error)),
            contextlib.closing(sqlite3.connect(self._record)) as db,
            db,
        ):
            db.execute("PRAGMA synchronous = FULL")
            yield db


def _under_way(db: sqlite3.Connection) -> list[_Intent]:
    return [_Intent(*row) for row in db.execute("SELECT key, id, path, old, text FROM under_way")]


def _enter(db: sqlite3.Connection, intents: Iterable[_Intent]) -> None:
    db.executemany("INSERT OR IGNORE INTO done VALUES (?)", ((intent.id,) for intent in intents))


def _is_done(db: sqlite3.Connection, id: bytes) -> bool:
    return db.execute("SELECT 1 FROM done WHERE id = ?", (id,)).fetchone() is not None


def record_of(out: str | os.PathLike[str]) -> Path:
    """Where `Texts` keeps its record for an output: in a folder of parts, or beside a file."""
    path = Path(os.path.realpath(out))
    return path.with_name(f"{path.name}.beside") if path.suffix.lower() in (".jsonl", ".ndjson") else path / "_beside"


def text_of(source: Source) -> Path:
    """The text beside an image. Raises InputError if that is no file of this machine."""
    image = source.image if isinstance(source, Asked) else source
    local = _local(image) if isinstance(image, str) else ""
    if not local:
        raise InputError(
            f"{source_key(source)} is no file of its own on this machine, with a text beside it: leave --beside out"
        )
    return Path(os.path.realpath(Path(local).with_suffix(".txt")))


def _local(name: str) -> str:
    """The path of an image by its name; empty if it has none."""
    return local_path(name) if kind_of(name) == "path" else ""


def _namesake(image: Path) -> Path | None:
    """Another image whose text has the same name. What cannot be asked for, as its name is too long, is not there."""
    names = (image.with_suffix(suffix) for known in IMAGE_SUFFIXES for suffix in (known, known.upper()))
    there = os.path.exists(image)
    return next((other for other in names if os.path.exists(other) and not (there and other.samefile(image))), None)


def _digest(content: bytes | None) -> bytes | None:
    return None if content is None else blake2b(content, digest_size=16).digest()


def _written(path: Path, content: bytes) -> None:
    with explained(path):
        write_file(path, content)
