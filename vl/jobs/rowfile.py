"""A JSON Lines file that survives `kill -9`: appended to by one process, repaired when it is opened again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vl.errors import Error
from vl.files import sync_folder
from vl.jobs.duplicates import answer_key
from vl.jobs.errors import JobError
from vl.jobs.made import check_run, made_with
from vl.jobs.prompts import Prompt, Prompts
from vl.jobs.sources import Source, as_known, row_key, work_key

Row = dict[str, Any]

SUFFIXES = (".jsonl", ".ndjson")
_ROW_START = b'{"image": '


def check_out(path: str | os.PathLike[str]) -> Path:
    """`path` with symbolic links followed, if it is named like a file that jobs can write.

    Raises:
        JobError: if the suffix is not one of `SUFFIXES`.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in SUFFIXES:
        fix = f"name it like {Path(path).stem or 'captions'}{SUFFIXES[0]}"
        raise JobError(f"cannot write {os.fspath(path)}: captions are JSON Lines or Parquet: {fix}")
    if "\0" in os.fspath(path):
        raise JobError("the name of the output file holds a NUL character: leave it out")
    return Path(os.path.realpath(path))


def encode_row(row: Row) -> bytes:
    """One line of UTF-8 JSON. File names that are not UTF-8 keep their bytes as escapes of lone surrogates."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


class RowFile:
    """The rows of a captioning job, one per source; a context manager that holds a lock on the file.

    Rows are appended and forced to disk together (`append`), so a crash leaves whole rows and at most one torn line
    at the end, which opening drops. `done` holds the images that need no more work, `errors` those whose row is an
    error, `skipped` counts the sources that `pending` passed over.

    Args:
        path: the file; it and its folder are created when they are missing.
        model, prompt, settings: what the rows are made with; a file with rows that name others is refused.
        mix: it is not, and its rows are kept, if they have the same columns.
        overwrite: start from an empty file. The old rows are cut when there are new ones, or on leaving the context
            without an error: what fails before costs nothing.
        retry_errors: leave the images of error rows out of `done`. An old row stays until its image has a new one;
            leaving the context drops it then, by rewriting the file atomically.

    Raises:
        JobError: if another process writes the file, if it holds anything else, or if it cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        model: str,
        prompt: Prompt,
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        retry_errors: bool = False,
        mix: bool = False,
    ) -> None:
        self.path = check_out(path)
        self.prompts = Prompts.of(prompt)
        self._made = made_with(model, self.prompts, settings)
        self._mix = mix
        self.done: set[str] = set()
        self.errors: set[str] = set()
        self.skipped = 0
        self._uncut = overwrite  # the file still holds the old rows
        self._retry_errors = retry_errors
        self._fd = -1
        self._size = 0
        self._places: dict[bytes, int] = {}  # offsets of captions, by `answer_key`
        self._superseded = False
        self.before_overwriting: Callable[[], object] = lambda: None
        """Called when the old rows are about to be cut, once it is sure that they will be."""

    @property
    def rows(self) -> int:
        """Images that need no more work."""
        return len(self.done)

    @property
    def failures(self) -> int:
        """Images whose row is an error."""
        return len(self.errors)

    def __enter__(self) -> RowFile:
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = _open_locked(self.path)
            try:
                if not self._uncut:
                    self._repair()
                sync_folder(self.path.parent)
            except BaseException:
                self._close()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            with explained(self.path):
                if self._uncut and kind is None:
                    self._cut()
                if self._superseded:
                    self._repair()
        except JobError:
            # Opening the file again repairs it too, so this must not hide what went wrong before.
            if kind is None:
                raise
        finally:
            self._close()

    def pending(self, sources: Iterable[Source]) -> Iterator[Source]:
        """The sources that need a row, each image once; counts the others in `skipped`."""
        for source in sources:
            source = as_known(source, self._has)
            key = work_key(source)
            if key in self.done:
                self.skipped += 1
            else:
                self.done.add(key)
                yield source

    def _has(self, key: str) -> bool:
        return key in self.done or key in self.errors

    def append(self, rows: Iterable[Row]) -> list[Row]:
        """Write rows at the end and force them to disk; all of them or, on an error, none. Returns what is written.

        Raises:
            JobError: if the disk is full or the file cannot be written.
        """
        batch = list(rows)
        lines = [encode_row(row) for row in batch]
        data = b"".join(lines)
        with explained(self.path):
            if self._uncut:
                self._cut()
            try:
                _write_all(self._fd, data)
                os.fsync(self._fd)
            except BaseException as error:
                # Ctrl-C after the last byte leaves whole rows, which may stay; anything else is taken back.
                if isinstance(error, OSError) or os.fstat(self._fd).st_size != self._size + len(data):
                    with contextlib.suppress(OSError):
                        os.ftruncate(self._fd, self._size)
                raise
        for row, line in zip(batch, lines, strict=True):
            self._count(row, self._size)
            self._size += len(line)
        self._superseded = self._superseded or self._retry_errors
        return batch

    def captioned(self, key: str) -> bool:
        """Whether the source with this `row_key` has a row that is no error."""
        return key in self.done and key not in self.errors

    def find(self, key: bytes) -> Row | None:
        """A row with a caption by its `answer_key`; in any thread."""
        offset = self._places.get(key)
        if offset is None:
            return None
        with open(self.path, "rb") as file:
            file.seek(offset)
            row: Row = json.loads(file.readline())
            return row

    def read(self) -> Iterator[Row]:
        """All rows."""
        return (json.loads(line) for _, line in self._lines())

    def clear(self) -> None:
        """Drop all rows, which are safe elsewhere. Raises JobError."""
        with explained(self.path):
            self._cut()
            os.fsync(self._fd)
        self._size = 0
        self.done.clear()
        self.errors.clear()
        self._places.clear()

    def _cut(self) -> None:
        """Drop what the file held before."""
        if self._uncut:
            self.before_overwriting()
        os.ftruncate(self._fd, 0)
        self._uncut = False

    def _repair(self) -> None:
        """Read all rows; drop a torn line at the end, and rows that a later row of the same image replaces."""
        done: set[str] = set()
        self.errors.clear()
        self._places.clear()
        last: dict[str, int] = {}  # offset of the row that counts, where an image has several
        self._size = 0
        for offset, line in self._lines():
            row = self._parse(offset, line)
            if row is None:
                break
            key = row_key(row)
            if key in done:
                last[key] = offset
            done.add(key)
            self._count(row, offset)
            self._size = offset + len(line)
        if self._size < os.fstat(self._fd).st_size:
            os.ftruncate(self._fd, self._size)
            os.fsync(self._fd)
        if last:
            self._keep(last)
        self._superseded = False
        self.done = done - self.errors if self._retry_errors else done

    def _count(self, row: Row, offset: int) -> None:
        if "error" in row:
            self.errors.add(row_key(row))
            return
        self.errors.discard(row_key(row))
        if (key := answer_key(row)) is not None:
            self._places[key] = offset

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Lines of the file with their offsets."""
        offset = 0
        with open(self.path, "rb") as file:
            for line in file:
                yield offset, line
                offset += len(line)

    def _parse(self, offset: int, line: bytes) -> Row | None:
        """The row of a line, or None for the torn end of the file.

        Only what a crash can leave of a row counts as torn, so that a file that is not ours is never cut.
        """
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("image"), str) and {"model", "prompt"} <= row.keys():
            check_run(self.path, row, self._made, self._mix)
            if "error" in row or all(column in row for column in self.prompts.answers):
                return row if line.endswith(b"\n") else None
        text = line.rstrip(b"\n").strip(b"\0")
        is_last = offset + len(line) == os.fstat(self._fd).st_size
        if row is None and is_last and (text.startswith(_ROW_START) or _ROW_START.startswith(text)):
            return None
        raise JobError(
            f"{self.path} is not a file of captions: the line at byte {offset} is not a caption row. "
            "Choose another output file, or start it again with --overwrite"
        )

    def _keep(self, last: dict[str, int]) -> None:
        """Rewrite the file with one row for each image of `last`, the one at that offset."""
        draft = self.path.with_name(self.path.name + ".tmp")
        fd = os.open(draft, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            # The new file is locked before it takes the name, so there is never a moment without a lock.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(fd, stat.S_IMODE(os.fstat(self._fd).st_mode))
            size = 0
            self._places.clear()
            for offset, line in self._lines():
                row = json.loads(line)
                if last.get(row_key(row), offset) == offset:
                    self._count(row, size)
                    size += _write_all(fd, line)
            os.fsync(fd)
            os.replace(draft, self.path)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(draft)
            raise
        sync_folder(self.path.parent)
        os.close(self._fd)
        self._fd, self._size = fd, size

    def _close(self) -> None:
        """Closing the file releases its lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextlib.contextmanager
def explained(out: Path | str, kinds: type[Exception] | tuple[type[Exception], ...] = OSError) -> Iterator[None]:
    """Errors of these kinds as a JobError that says what is safe and what to do."""
    try:
        yield
    except Error:
        raise
    except kinds as error:
        why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise JobError(
            f"cannot write {out}: {why}. The rows that were written are safe: "
            "repair that and run the same command again, or choose another output"
        ) from error


def _open_locked(path: Path) -> int:
    """Open `path` for appending and lock it.

    Raises:
        JobError: if it is not a regular file, or if another process has locked it.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise JobError(f"cannot write {path}: it is not a regular file")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another process may have rewritten the file, and so changed what the name stands for, before the lock.
            if os.path.exists(path) and os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
            os.close(fd)
        except BlockingIOError:
            os.close(fd)
            raise JobError(
                f"{path} is being written by another run: wait until it ends, or choose another output file"
            ) from None
        except BaseException:
            os.close(fd)
            raise


def _write_all(fd: int, data: bytes) -> int:
    written = 0
    while written < len(data):
        written += os.write(fd, data[written:])
    return written
