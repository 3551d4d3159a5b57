"""A folder of part files that survives `kill -9`: each part appears whole, with its images, in one commit."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any

from vl.jobs.duplicates import answer_key
from vl.jobs.manifest import Manifest
from vl.jobs.parts import Format, id_of
from vl.jobs.pictures import Pictures
from vl.jobs.prompts import Prompt, Prompts
from vl.jobs.rowfile import JobError, Row, RowFile, check_run, encode_row, made_with, sync_folder
from vl.jobs.sources import Source, row_key

PART_ROWS = 10_000
"""Rows of a part file, at most."""

_DRAFT = "_{}.tmp"  # names that begin with _ are no part to any reader


class PartFolder:
    """The rows of a captioning job as `part-00000.parquet`, ... in a folder; a context manager that locks it.

    Rows go to `_journal.jsonl` first, a `RowFile`, so that they are safe batch by batch. When `part_rows` are there, or
    the job ends, they become a part: written as a draft, then entered with its images in `_manifest.sqlite` in one
    transaction, then renamed. Opening the folder finishes or takes back what a crash left in between. The manifest says
    which images have a row, on disk: memory does not grow with them, and the parts themselves are not read again.
    Readers take the files in the folder whose names begin with no `_`, as pandas, DuckDB (`*.parquet`) and Spark do.

    Args:
        path: the folder; made if it is missing.
        format: of the parts.
        model, prompt, settings, overwrite, retry_errors, mix: as of `RowFile`.
        part_rows: rows of a part, at most.

    Raises:
        JobError: as `RowFile`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        format: Format,
        *,
        model: str,
        prompt: Prompt,
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        retry_errors: bool = False,
        mix: bool = False,
        part_rows: int = PART_ROWS,
    ) -> None:
        self.path = Path(os.path.realpath(path))
        self.prompts = Prompts.of(prompt)
        self._skipped = 0
        self._format = format
        self._made = made_with(model, self.prompts, settings)
        self._mix = mix
        journal = self.path / "_journal.jsonl"
        self._journal = RowFile(
            journal, model=model, prompt=self.prompts, settings=settings, overwrite=overwrite, mix=mix
        )
        self._overwrite = overwrite  # the folder still holds the old parts
        self._retry_errors = retry_errors
        self._part_rows = part_rows
        self._waiting: dict[str, Row] = {}  # rows of the journal
        self._lock = threading.Lock()  # `find` is called in other threads than the rest
        self._taken: set[str] = set()  # by `pending`, and not to be taken again though no row says so

    @property
    def skipped(self) -> int:
        """Sources that `pending` passed over."""
        return self._skipped + self._manifest.passed

    @property
    def rows(self) -> int:
        """Images that have a row."""
        return len(self._waiting) - self._retried + self._manifest.rows

    @property
    def failures(self) -> int:
        """Images whose row is an error."""
        return len(self._journal.errors) - self._retried + self._manifest.failures

    @property
    def _retried(self) -> int:
        """Rows of the journal whose image has an error row in a part."""
        return sum(map(len, self._manifest.replaced(map(id_of, self._waiting)).values()))

    def __enter__(self) -> PartFolder:
        with explained(self.path):
            if self.path.is_dir() and not (self.path / "_journal.jsonl").exists() and any(self.path.iterdir()):
                raise JobError(f"{self.path} holds files of something else: choose another output folder")
            self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            opened.enter_context(self._journal)
            with explained(self.path):
                self._manifest = Manifest(self.path / "_manifest.sqlite")
                opened.callback(self._manifest.close)
                self._pictures = Pictures(self.path / "_images") if self._format.wants_images else None
                if not self._overwrite:
                    self._repair()
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._opened:  # after an error the journal keeps the rows for the next run
            if kind is None:
                with explained(self.path):
                    self._drop()
                    self._commit()

    def pending(self, sources: Iterable[Source]) -> Iterator[Source]:
        """As `RowFile.pending`."""
        for source, key in self._manifest.skim(sources, errors_too=self._retry_errors or self._overwrite):
            if key in self._taken or self._is_done(key):
                self._skipped += 1
            else:
                self._taken.add(key)
                if self._pictures is not None:
                    self._pictures.expect(key, source)
                yield source

    def append(self, rows: Iterable[Row]) -> None:
        """Force rows to disk; all of them or, on an error, none. When there are enough, they become a part.

        Raises:
            JobError: if the disk is full or the folder cannot be written.
        """
        with explained(self.path):
            self._drop()
            batch = list(rows) if self._pictures is None else self._pictures.fetch(rows, self.prompts.columns)
        self._journal.append(batch)
        for row in batch:
            self._waiting[row_key(row)] = row
            if not (self._retry_errors and "error" in row):  # which would be tried again, without end
                self._taken.discard(row_key(row))
        if len(self._waiting) >= self._part_rows:
            with explained(self.path):
                self._commit()

    def captioned(self, key: str) -> bool:
        """As `RowFile.captioned`."""
        if (row := self._waiting.get(key)) is not None:
            return "error" not in row
        id = id_of(key)
        return not self._overwrite and self._manifest.has(id) and not self._manifest.failed(id)

    def find(self, key: bytes) -> Row | None:
        """As `RowFile.find`."""
        with self._lock:
            if (row := self._journal.find(key)) is not None or self._overwrite:
                return row
            part = self._manifest.part_of(key)
            return None if part is None else self._format.find(self._part(part), key)

    def _is_done(self, key: str) -> bool:
        if (row := self._waiting.get(key)) is not None:
            return not (self._retry_errors and "error" in row)
        if self._overwrite:
            return False
        id = id_of(key)
        return self._manifest.has(id) and not (self._retry_errors and self._manifest.failed(id))

    def _repair(self) -> None:
        """Check that the parts are of this run, and finish or take back what a crash left half done."""
        for made in self._manifest.made():
            check_run(self.path, made, self._made, self._mix)
        self._settle()
        self._waiting = {row_key(row): row for row in self._journal.read()}
        if self._manifest.journal() == self._digest():
            self._clear()

    def _drop(self) -> None:
        """Drop what the folder held before `overwrite`."""
        if self._overwrite:
            self._manifest.clear()
            self._settle()
            self._overwrite = False

    def _commit(self) -> None:
        """Make the journal's rows a part, and take rows that they replace out of the older ones."""
        if not self._waiting:
            return
        number = self._manifest.next_part
        ids = {id_of(key): "error" in row for key, row in self._waiting.items()}
        images = None if self._pictures is None else self._pictures.read
        self._format.write(self._draft(number), number, self._waiting, images)
        shrunk: dict[int, tuple[int, int]] = {}  # by old part: its successor, and how many rows that has
        for old, gone in self._manifest.replaced(ids).items():
            successor = number + 1 + len(shrunk)
            shrunk[old] = successor, self._format.shrink(self._part(old), gone, self._draft(successor))
        sync_folder(self._part(number))
        keys = (answer_key(row) for row in self._waiting.values() if "error" not in row)
        answers = [key for key in keys if key is not None]
        with self._lock:
            self._manifest.add(number, ids, self._made, self._digest(), shrunk, answers)
            self._settle()
            self._clear()

    def _settle(self) -> None:
        """Remove parts that are not in the manifest, then name those that are: so no row shows twice at any time."""
        parts = {self._draft(number): self._part(number) for number in self._manifest.parts()}
        ours = {*parts, *parts.values()}
        for path in [*self.path.glob(f"part-*{self._format.suffix}"), *self.path.glob(_DRAFT.format("part-*"))]:
            if path not in ours:
                path.unlink()
        for draft, part in parts.items():
            if draft.exists():
                os.replace(draft, part)
        sync_folder(self._journal.path)

    def _clear(self) -> None:
        """Empty the journal: its rows are in a part."""
        self._waiting.clear()
        self._journal.clear()
        if self._pictures is not None:
            self._pictures.clear()

    def _digest(self) -> bytes:
        """Of the journal's rows: a part that has it was made of them."""
        digest = blake2b(digest_size=16)
        for name in sorted(self._waiting):
            digest.update(encode_row(self._waiting[name]))
        return digest.digest()

    def _part(self, number: int) -> Path:
        return self.path / f"part-{number:05}{self._format.suffix}"

    def _draft(self, number: int) -> Path:
        return self.path / _DRAFT.format(self._part(number).name)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Errors of the disk, of the parts' and the manifest's writers too, as a JobError."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise JobError(
            f"cannot write {path}: {error}. The rows that were written are safe: "
            "repair that and run the same command again, or choose another output folder"
        ) from error
