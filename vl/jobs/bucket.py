"""Part files at a URL, such as a bucket of S3: each appears whole, and the bucket says which images have a row."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vl.errors import Error
from vl.jobs.manifest import Manifest
from vl.jobs.parts import Format, id_of
from vl.jobs.pictures import Pictures
from vl.jobs.prompts import Prompt, Prompts
from vl.jobs.rowfile import JobError, Row, check_run, made_with
from vl.jobs.sources import Source, row_key
from vl.jobs.sources.files import remote

PART_ROWS = 10_000
"""Rows of a part, at most."""

PART_SECONDS = 300.0
"""After which rows become a part, however few: what a kill may cost in work, never in rows."""

_INDEX = "_index"
_PART = re.compile(r"part-\d{5,}")
_ID = 16


class Bucket:
    """The rows of a captioning job as `part-00000.parquet`, ... below a URL; a context manager.

    Rows become a part when `part_rows` are there, when `part_seconds` have passed, and at the end, after an error too.
    A part is one object, which appears whole or not at all, and is the commit. Beside it goes its index, with the ids
    of its rows; where a crash left none, it is made anew of the part. Nothing is kept on this machine: any other may go
    on. Two runs at once are found out before they write an image twice: a part is only written if none has its number.

    Args:
        url: of the folder.
        format: of the parts.
        model, prompt, settings, overwrite, retry_errors, mix: as of `RowFile`. A retried row takes the place of the old
            one: readers may find neither for a moment, and never both.
        part_rows, part_seconds: see above.

    Raises:
        JobError: as `RowFile`, or if the bucket cannot be reached.
        InputError: if fsspec or the package of that kind of URL is missing.
    """

    def __init__(
        self,
        url: str,
        format: Format,
        *,
        model: str,
        prompt: Prompt,
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        retry_errors: bool = False,
        mix: bool = False,
        part_rows: int = PART_ROWS,
        part_seconds: float = PART_SECONDS,
    ) -> None:
        self.url = url.rstrip("/")
        self.prompts = Prompts.of(prompt)
        self._format = format
        self._made = made_with(model, self.prompts, settings)
        self._mix = mix
        self._overwrite = overwrite  # the bucket still holds the old parts
        self._retry_errors = retry_errors
        self._part_rows, self._part_seconds = part_rows, part_seconds
        place = remote(self.url)
        self._fs, self._root = place.fs, place.path.rstrip("/")
        self._waiting: dict[str, Row] = {}  # rows that are in no part yet
        self._taken: set[str] = set()  # by `pending`, and not to be taken again though no row says so
        self._skipped = 0

    @property
    def skipped(self) -> int:
        return self._skipped + self._manifest.passed

    @property
    def rows(self) -> int:
        """Images that have a row."""
        return len(self._waiting) - self._retried + self._manifest.rows

    @property
    def failures(self) -> int:
        """Images whose row is an error."""
        waiting = sum("error" in row for row in self._waiting.values())
        return waiting - self._retried + self._manifest.failures

    @property
    def _retried(self) -> int:
        return sum(map(len, self._manifest.replaced(map(id_of, self._waiting)).values()))

    def __enter__(self) -> Bucket:
        with contextlib.ExitStack() as opened:
            self._here = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="vl-parts-")))
            self._pictures = Pictures(self._here / "images") if self._format.wants_images else None
            self._manifest = Manifest(None)
            opened.callback(self._manifest.close)
            with self._explained():
                if not self._overwrite:
                    self._read_index()
            self._opened = opened.pop_all()
        self._begun = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._opened:
            try:
                with self._explained():
                    if kind is None:
                        self._drop()
                    self._commit()
            except JobError:
                if kind is None:  # it must not hide what went wrong before
                    raise

    def find(self, key: bytes) -> Row | None:
        """None: an image that came before is captioned again rather than looked for in the bucket."""
        return None

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
        """Take rows; when there are enough, or time has come, they become a part. Raises JobError."""
        with self._explained():
            self._drop()
            batch = list(rows) if self._pictures is None else self._pictures.fetch(rows, self.prompts.columns)
        for row in batch:
            key = row_key(row)
            self._waiting[key] = row
            if not (self._retry_errors and "error" in row):  # which would be tried again, without end
                self._taken.discard(key)
        if len(self._waiting) >= self._part_rows or time.monotonic() - self._begun > self._part_seconds:
            with self._explained():
                self._commit()

    def _is_done(self, key: str) -> bool:
        if (row := self._waiting.get(key)) is not None:
            return not (self._retry_errors and "error" in row)
        id = id_of(key)
        return self._manifest.has(id) and not (self._retry_errors and self._manifest.failed(id))

    def _read_index(self) -> None:
        """Learn what the bucket has, and that it is of this run."""
        self._fs.invalidate_cache()
        for number in self._parts():
            with contextlib.suppress(FileNotFoundError):
                self._learn(number, self._fs.cat_file(self._index(number)))
                continue
            self._fs.get_file(self._part(number), str(self._draft))
            ids = self._format.ids(self._draft)
            # Of an earlier version of itself nothing is said: it is this run's, or check_run found so in the others.
            self._write_index(number, ids)
            self._manifest.add(number, ids, self._made)

    def _learn(self, number: int, index: bytes) -> None:
        head, _, body = index.partition(b"\n")
        made = json.loads(head)
        check_run(self.url, made, self._made, self._mix)
        ids = {body[at : at + _ID]: bool(body[at + _ID]) for at in range(0, len(body), _ID + 1)}
        self._manifest.add(number, ids, made)

    def _drop(self) -> None:
        """Drop what the bucket held before `overwrite`."""
        if self._overwrite:
            self._fs.invalidate_cache()
            for number in self._parts():
                self._remove(self._index(number))
                self._remove(self._part(number))
            self._manifest.clear()
            self._overwrite = False

    def _commit(self) -> None:
        """Make the waiting rows a part, and take rows that they replace out of the older ones first."""
        self._begun = time.monotonic()
        if not self._waiting:
            return
        ids = {id_of(key): "error" in row for key, row in self._waiting.items()}
        for old, gone in self._manifest.replaced(ids).items():
            self._shrink(old, gone)
        number = self._manifest.next_part
        images = None if self._pictures is None else self._pictures.read
        self._format.write(self._draft, number, self._waiting, images)
        try:
            self._fs.put_file(str(self._draft), self._part(number), mode="create")
        except (FileExistsError, OSError) as error:
            if isinstance(error, FileExistsError) or "PreconditionFailed" in str(error) or "412" in str(error):
                raise JobError(
                    f"{self.url} is being written by another run: wait until it ends, or choose another output"
                ) from None
            raise
        self._write_index(number, ids)
        self._manifest.add(number, ids, self._made)
        if self._pictures is not None:
            self._pictures.clear()
        self._waiting.clear()

    def _shrink(self, number: int, gone: set[bytes]) -> None:
        """Take rows out of a part. Its index goes first: without one the part itself is asked."""
        self._fs.get_file(self._part(number), str(self._draft))
        kept = {id: error for id, error in self._format.ids(self._draft).items() if id not in gone}
        smaller = self._here / "smaller"
        self._remove(self._index(number))
        if self._format.shrink(self._draft, gone, smaller):
            self._fs.put_file(str(smaller), self._part(number))
            self._write_index(number, kept)
        else:
            self._remove(self._part(number))

    def _write_index(self, number: int, ids: Mapping[bytes, bool]) -> None:
        body = b"".join(id + bytes([error]) for id, error in ids.items())
        self._fs.pipe_file(self._index(number), json.dumps(self._made).encode() + b"\n" + body)

    def _parts(self) -> list[int]:
        with contextlib.suppress(FileNotFoundError):
            names = (Path(path).name for path in self._fs.ls(self._root, detail=False))
            suffix = self._format.suffix
            stems = (name.removesuffix(suffix) for name in names if name.endswith(suffix))
            return sorted(int(stem.removeprefix("part-")) for stem in stems if _PART.fullmatch(stem))
        return []

    def _part(self, number: int) -> str:
        return f"{self._root}/part-{number:05}{self._format.suffix}"

    def _index(self, number: int) -> str:
        return f"{self._root}/{_INDEX}/{number:05}"

    @property
    def _draft(self) -> Path:
        return self._here / "draft"

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(path)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Whatever the file system raises, as a JobError."""
        try:
            yield
        except Error:
            raise
        except Exception as error:
            raise JobError(
                f"cannot write {self.url}: {type(error).__name__}: {error}. The rows of the parts that are there are "
                "safe: repair that and run the same command again, or choose another output"
            ) from error
