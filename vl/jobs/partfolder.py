"""A folder of part files that survives `kill -9`: each part appears whole, with its images, in one commit."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any

from vl.files import sync_folder
from vl.jobs.duplicates import answer_key
from vl.jobs.errors import JobError
from vl.jobs.manifest import Manifest
from vl.jobs.parts import DRAFT, JOURNAL, MANIFEST, Format, id_of
from vl.jobs.partsink import PartSink
from vl.jobs.pictures import Pictures
from vl.jobs.rowfile import Row, RowFile, encode_row, explained
from vl.jobs.sources import row_key


class PartFolder(PartSink):
    """The rows of a captioning job as `part-00000.parquet`, ... in a folder; a context manager that locks it.

    Rows go to `_journal.jsonl` first, a `RowFile`, so that they are safe batch by batch. When they become a part, it is
    written as a draft, then entered with its images in `_manifest.sqlite` in one transaction, then renamed. Opening the
    folder finishes or takes back what a crash left in between. The manifest says which images have a row, on disk:
    memory does not grow with them, and the parts themselves are not read again.
    Readers take the files in the folder whose names begin with no `_`, as pandas, DuckDB (`*.parquet`) and Spark do.

    Raises:
        JobError: as `RowFile`.
    """

    def __init__(self, path: str | os.PathLike[str], format: Format, **options: Any) -> None:
        super().__init__(os.path.realpath(path), format, **options)
        self.path = Path(self.out)
        self.before_overwriting: Callable[[], object] = lambda: None
        """As of `RowFile`."""
        self._lock = threading.Lock()  # `find` is called in other threads than the rest
        how = {"prompt": self.prompts, "overwrite": self._overwrite, "mix": self._mix}
        self._journal = RowFile(self.path / JOURNAL, **self._made | how)

    def __enter__(self) -> PartFolder:
        with self._explained():
            if self.path.is_dir() and not (self.path / JOURNAL).exists() and any(self.path.iterdir()):
                raise JobError(f"{self.path} holds files of something else: choose another output folder")
            self.path.mkdir(parents=True, exist_ok=True)
            for name in sorted(os.listdir(self.path)):
                if name.startswith("part-") and not name.endswith(self._format.suffix):
                    raise JobError(
                        f"{self.path} holds parts of another kind, such as {name}: give it the name back that it had, "
                        "or choose another output folder"
                    )
        with contextlib.ExitStack() as opened:
            opened.enter_context(self._journal)
            with self._explained():
                self._manifest = Manifest(self.path / MANIFEST)
                opened.callback(self._close)
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
                with self._explained():
                    self._drop()
                    self._flush()

    def _close(self) -> None:
        # A thread that still reads ahead may be in `find`: SQLite does not live through its end meanwhile.
        with self._lock:
            self._manifest.close()

    def _secure(self, rows: list[Row]) -> None:
        self._journal.append(rows)

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

    def _repair(self) -> None:
        """Check that the parts are of this run, and finish or take back what a crash left half done."""
        for made in self._manifest.made():
            self._check(made)
        self._settle()
        self._waiting = {row_key(row): row for row in self._journal.read()}
        if self._manifest.journal() == self._digest():
            self._emptied()
        captioned = (key for key, row in self._waiting.items() if "error" not in row)
        if self._pictures is not None and not all(map(self._pictures.has, captioned)):
            self._refuse_images()

    def _drop(self) -> None:
        if self._overwrite:
            self.before_overwriting()
            self._manifest.clear()
            self._settle()
            self._overwrite = False

    def _commit(self, ids: Mapping[bytes, bool]) -> None:
        number = self._manifest.next_part
        images = None if self._pictures is None else self._pictures.read
        self._format.write(self._draft(number), number, self._waiting, images)
        shrunk: dict[int, tuple[int, int]] = {}  # by old part: its successor, and how many rows that has
        for old, gone in self._manifest.replaced(ids).items():
            successor = number + 1 + len(shrunk)
            shrunk[old] = successor, self._format.shrink(self._part(old), gone, self._draft(successor))
        sync_folder(self.path)
        keys = (answer_key(row) for row in self._waiting.values() if "error" not in row)
        answers = [key for key in keys if key is not None]
        with self._lock:
            self._manifest.add(number, ids, self._waiting_made(), self._digest(), shrunk, answers)
            self._settle()
            self._emptied()

    def _settle(self) -> None:
        """Remove parts that are not in the manifest, then name those that are: so no row shows twice at any time."""
        parts = {self._draft(number): self._part(number) for number in self._manifest.parts()}
        ours = {*parts, *parts.values()}
        for path in [*self.path.glob(f"part-*{self._format.suffix}"), *self.path.glob(DRAFT.format("part-*"))]:
            if path not in ours:
                path.unlink()
        for draft, part in parts.items():
            if draft.exists():
                os.replace(draft, part)
        sync_folder(self.path)

    def _emptied(self) -> None:
        super()._emptied()
        self._journal.clear()

    def _digest(self) -> bytes:
        """Of the journal's rows: a part that has it was made of them."""
        digest = blake2b(digest_size=16)
        for name in sorted(self._waiting):
            digest.update(encode_row(self._waiting[name]))
        return digest.digest()

    def _part(self, number: int) -> Path:
        return self.path / self._name(number)

    def _draft(self, number: int) -> Path:
        return self.path / DRAFT.format(self._name(number))

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return explained(self.path, (OSError, sqlite3.Error))
