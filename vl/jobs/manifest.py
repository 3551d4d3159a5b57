"""Which sources of a job have a row, and in which part: on disk, so that memory does not grow with them."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice

from vl.jobs.parts import id_of
from vl.jobs.rowfile import Row
from vl.jobs.sources import Source, work_key

_CACHE_KIB = 64 << 10  # digests are looked up all over the file
_TABLES = """
CREATE TABLE IF NOT EXISTS run (made TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS parts (number INTEGER PRIMARY KEY, rows INTEGER NOT NULL, journal BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS images (id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failures (id BLOB PRIMARY KEY, part INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, part INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS successors (part INTEGER PRIMARY KEY, number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS stretches (first BLOB PRIMARY KEY, length INTEGER, digest BLOB) WITHOUT ROWID;
"""


@dataclass
class _Stretch:
    """Sources in a row, up to one whose id says that it is the last."""

    ids: list[bytes] = field(default_factory=list)
    left: set[bytes] = field(default_factory=set)  # those without a row in a part

    @property
    def record(self) -> tuple[bytes, int, bytes]:
        return self.ids[0], len(self.ids), blake2b(b"".join(self.ids), digest_size=16).digest()


class Manifest:
    """The ids of all rows, in a SQLite file.

    Sources come in the same order in every run, mostly. So the manifest also has stretches of some 256 of them, all of
    which have a row, by their digest: `skim` passes over such a stretch after one look, and resuming reads few of the
    ids. A stretch ends where an id does by itself, so that a source more or less spoils one of them, and not all after.
    One thread may `skim` while others ask or change: a change is a transaction, which no other thread's may end.

    Args:
        path: of the file, made if it is missing; None: a temporary one.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._db = sqlite3.connect("" if path is None else path, check_same_thread=False)
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._db.executescript(_TABLES)
        self._changing = threading.RLock()  # all go through one connection, and nobody sees half of a change
        self._open: list[_Stretch] = []  # whose sources have not all a row
        self.passed = 0  # by `skim`

    def close(self) -> None:
        self._db.close()

    # What is there

    @property
    def rows(self) -> int:
        return self._number("SELECT COALESCE(SUM(rows), 0) FROM parts")

    @property
    def failures(self) -> int:
        return self._number("SELECT COUNT(*) FROM failures")

    @property
    def next_part(self) -> int:
        return self._number("SELECT COALESCE(MAX(number), -1) + 1 FROM parts")

    def parts(self) -> list[int]:
        return [number for (number,) in self._db.execute("SELECT number FROM parts ORDER BY number")]

    def made(self) -> list[Row]:
        """What the rows were made with."""
        return [json.loads(made) for (made,) in self._db.execute("SELECT made FROM run")]

    def journal(self) -> bytes | None:
        """The digest of what the newest part was made of."""
        found = self._db.execute("SELECT journal FROM parts ORDER BY number DESC LIMIT 1").fetchone()
        return found[0] if found else None

    def has(self, key: bytes) -> bool:
        with self._changing:
            return self._db.execute("SELECT 1 FROM images WHERE id = ?", (key,)).fetchone() is not None

    def failed(self, key: bytes) -> bool:
        with self._changing:
            return self._db.execute("SELECT 1 FROM failures WHERE id = ?", (key,)).fetchone() is not None

    def part_of(self, answer: bytes) -> int | None:
        """Where a caption with this `answer_key` is."""
        part = self._db.execute("SELECT part FROM answers WHERE key = ?", (answer,)).fetchone()
        while part and (moved := self._db.execute("SELECT number FROM successors WHERE part = ?", part).fetchone()):
            part = moved
        return part[0] if part else None

    def replaced(self, ids: Iterable[bytes]) -> dict[int, set[bytes]]:
        """Which of `ids` have an error row already, by part."""
        found: dict[int, set[bytes]] = {}
        for key in ids:
            for (part,) in self._db.execute("SELECT part FROM failures WHERE id = ?", (key,)):
                found.setdefault(part, set()).add(key)
        return found

    # Changes: each a transaction

    def clear(self) -> None:
        with self._changing:
            with self._db:
                for table in ("run", "parts", "images", "failures", "answers", "successors", "stretches"):
                    self._db.execute(f"DELETE FROM {table}")
            self._open.clear()

    def add(
        self,
        number: int,
        ids: Mapping[bytes, bool],
        made: Iterable[Row],
        journal: bytes = b"",
        shrunk: Mapping[int, tuple[int, int]] | None = None,
        answers: Iterable[bytes] = (),
    ) -> None:
        """Enter a part.

        Args:
            ids: of its rows, and which are errors.
            made: what they were made with: several, where runs of other settings left rows for it.
            journal: the digest of what it was made of.
            shrunk: older parts that lost rows to it: by number, the number of what took its place, and rows left.
            answers: the `answer_key`s of its captions.
        """
        texts = [(json.dumps(each),) for each in made]
        with self._changing:
            stretches = [_Stretch(stretch.ids, stretch.left - ids.keys()) for stretch in self._open]
            with self._db:
                self._db.executemany("DELETE FROM run WHERE made = ?", texts)
                self._db.executemany("INSERT INTO run VALUES (?)", texts)
                self._db.executemany("DELETE FROM failures WHERE id = ?", ((key,) for key in ids))
                for old, (successor, left) in (shrunk or {}).items():
                    self._db.execute("DELETE FROM parts WHERE number = ?", (old,))
                    self._db.execute("UPDATE failures SET part = ? WHERE part = ?", (successor, old))
                    self._db.execute("INSERT OR REPLACE INTO successors VALUES (?, ?)", (old, successor))
                    if left:
                        self._db.execute("INSERT INTO parts VALUES (?, ?, ?)", (successor, left, journal))
                self._db.execute("INSERT INTO parts VALUES (?, ?, ?)", (number, len(ids), journal))
                self._db.executemany("INSERT OR IGNORE INTO images VALUES (?)", ((key,) for key in ids))
                failed = ((key, number) for key, error in ids.items() if error)
                self._db.executemany("INSERT INTO failures VALUES (?, ?)", failed)
                found = ((key, number) for key in answers)
                self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", found)
                self._keep(stretches)
            # Not before that is on the disk: a stretch that lacks a row must never be taken for one that is done.
            self._open = [stretch for stretch in stretches if stretch.left]

    def _keep(self, stretches: Iterable[_Stretch]) -> None:
        """Enter those that are done."""
        whole = [stretch.record for stretch in stretches if not stretch.left]
        self._db.executemany("INSERT OR REPLACE INTO stretches VALUES (?, ?, ?)", whole)

    # Going through the sources

    def skim(self, sources: Iterable[Source], *, errors_too: bool = False) -> Iterator[tuple[Source, str]]:
        """Sources with their keys, without those in stretches that are done, which `passed` counts.

        Args:
            errors_too: pass over none, as an error may be among them.
        """
        rest = iter(sources)
        held: deque[tuple[Source, str, bytes]] = deque()  # looked at, and not to be passed over
        stretch = _Stretch()
        for source, key, id in _through(held, rest):
            if not (errors_too or stretch.ids or held) and self._pass_over(id, rest, held, (source, key, id)):
                continue
            stretch.ids.append(id)
            if not self.has(id):
                stretch.left.add(id)
            yield source, key
            if _ends(id):
                self._finish(stretch)
                stretch = _Stretch()

    def _pass_over(
        self,
        id: bytes,
        rest: Iterator[Source],
        held: deque[tuple[Source, str, bytes]],
        first: tuple[Source, str, bytes],
    ) -> bool:
        """Whether a stretch that is done began here, and was passed over. Else what was looked at is in `held`."""
        with self._changing:
            found = self._db.execute("SELECT length, digest FROM stretches WHERE first = ?", (id,)).fetchone()
        if found is None:
            return False
        length, digest = found
        others = [_known(source) for source in islice(rest, length - 1)]
        whole = _Stretch([id, *(other for _, _, other in others)]).record
        if whole == (id, length, digest):
            self.passed += length
            return True
        held.extend(others)
        return False

    def _finish(self, stretch: _Stretch) -> None:
        with self._changing:
            stretch.left = {id for id in stretch.left if not self.has(id)}  # parts may have come meanwhile
            if stretch.left:
                self._open.append(stretch)
                return
            # What a full disk keeps out is looked up again by the next run, source by source.
            with contextlib.suppress(sqlite3.Error), self._db:
                self._keep([stretch])

    def _number(self, query: str) -> int:
        return self._db.execute(query).fetchone()[0]


def _through(held: deque[tuple[Source, str, bytes]], rest: Iterator[Source]) -> Iterator[tuple[Source, str, bytes]]:
    while True:
        if held:
            yield held.popleft()
        elif (source := next(rest, None)) is not None:
            yield _known(source)
        else:
            return


def _known(source: Source) -> tuple[Source, str, bytes]:
    key = work_key(source)
    return source, key, id_of(key)


def _ends(id: bytes) -> bool:
    """Whether a stretch ends with this one: one of 256 does."""
    return id[0] == 0
