"""What outputs in part files share: the rows that wait for their part, and which images have or will have a row."""

from __future__ import annotations

import contextlib
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vl.jobs.errors import JobError
from vl.jobs.made import check_run, made_of, made_with
from vl.jobs.manifest import Manifest
from vl.jobs.parts import Format, id_of
from vl.jobs.pictures import Pictures
from vl.jobs.prompts import Prompt, Prompts
from vl.jobs.rowfile import Row
from vl.jobs.sources import Source, as_known, row_key


class PartSink(ABC):
    """Rows as `part-00000.parquet`, ...: subclasses say where, and how that is safe.

    Rows wait, and become a part when `part_rows` do, when `part_seconds` have passed, and at the end. One thread may
    append while another goes through `pending`: a key is waiting before it is no longer taken, and in the manifest
    before it waits no longer, and `pending` asks in that order.

    Args:
        out: where the parts are.
        format: of the parts.
        model, prompt, settings, overwrite, retry_errors, mix: as of `RowFile`.
    """

    part_rows = 10_000
    part_seconds = math.inf

    _manifest: Manifest  # of the parts: opened by the subclass, as is the next
    _pictures: Pictures | None  # for parts that have the images in them

    def __init__(
        self,
        out: str | os.PathLike[str],
        format: Format,
        *,
        model: str,
        prompt: Prompt,
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        retry_errors: bool = False,
        mix: bool = False,
    ) -> None:
        self.out = os.fspath(out)
        self.prompts = Prompts.of(prompt)
        self._format = format
        self._made = made_with(model, self.prompts, settings)
        self._mix = mix
        self._overwrite = overwrite  # the old parts are still there
        self._retry_errors = retry_errors
        self._waiting: dict[str, Row] = {}  # rows that are in no part yet
        self._taken: set[str] = set()  # by `pending`, and not to be taken again though no row says so
        self._skipped = 0
        self._begun = time.monotonic()  # the part that is coming

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
        waiting = sum("error" in row for row in self._waiting.values())
        return waiting - self._retried + self._manifest.failures

    @property
    def _retried(self) -> int:
        """Waiting rows whose image has an error row in a part."""
        return sum(map(len, self._manifest.replaced(map(id_of, self._waiting)).values()))

    def pending(self, sources: Iterable[Source]) -> Iterator[Source]:
        """As `RowFile.pending`."""
        known = (as_known(source, self._has) for source in sources)
        for source, key in self._manifest.skim(known, errors_too=self._retry_errors or self._overwrite):
            if key in self._taken or self._is_done(key):
                self._skipped += 1
            else:
                self._taken.add(key)
                if self._pictures is not None:
                    self._pictures.expect(key, source)
                yield source

    def _has(self, key: str) -> bool:
        """Whether there is a row of it that stays until it has another."""
        return key in self._waiting or (not self._overwrite and self._manifest.has(id_of(key)))

    def append(self, rows: Iterable[Row]) -> list[Row]:
        """Take rows, which become a part when it is time. Returns them as they are taken.

        One whose image is gone by now is an error.

        Raises:
            JobError: if they cannot be written; none or all of them are taken then.
        """
        with self._explained():
            self._drop()
            batch = list(rows) if self._pictures is None else self._pictures.fetch(rows, self.prompts.answers)
            self._secure(batch)
        for row in batch:
            key = row_key(row)
            self._waiting[key] = row
            if not (self._retry_errors and "error" in row):  # which would be tried again, without end
                self._taken.discard(key)
        if len(self._waiting) >= self.part_rows or time.monotonic() - self._begun > self.part_seconds:
            with self._explained():
                self._flush()
        return batch

    def _is_done(self, key: str) -> bool:
        if (row := self._waiting.get(key)) is not None:
            return not (self._retry_errors and "error" in row)
        if self._overwrite:  # nothing of this run is in the manifest before the old parts are dropped
            return False
        id = id_of(key)
        return self._manifest.has(id) and not (self._retry_errors and self._manifest.failed(id))

    def _check(self, made: Row) -> None:
        """Hold parts to this run by what is known of them; not all say `images`. Raises JobError."""
        check_run(self.out, made, self._made, self._mix)
        if made.get("images", self._format.wants_images) != self._format.wants_images:
            self._refuse_images()

    def _refuse_images(self) -> None:
        without = self._format.wants_images
        raise JobError(
            f"{self.out} holds rows {'without' if without else 'with'} their images: "
            f"{'use --no-images' if without else 'leave --no-images out'} to continue it, choose another output, or "
            "start again with --overwrite"
        )

    def _waiting_made(self) -> list[Row]:
        """What the waiting rows were made with, perhaps by an earlier run, and whether their images are there."""
        return [made | {"images": self._format.wants_images} for made in made_of(self._waiting.values())]

    def _flush(self) -> None:
        """Make what waits a part."""
        self._begun = time.monotonic()
        if self._waiting:
            self._commit({id_of(key): "error" in row for key, row in self._waiting.items()})

    def _emptied(self) -> None:
        """The rows that waited are in a part."""
        self._waiting.clear()
        if self._pictures is not None:
            self._pictures.clear()

    def _name(self, number: int) -> str:
        """Of the file of a part."""
        return f"part-{number:05}{self._format.suffix}"

    @abstractmethod
    def find(self, key: bytes) -> Row | None:
        """As `RowFile.find`."""

    @abstractmethod
    def _secure(self, rows: list[Row]) -> None:
        """Make rows safe that wait from now on; all of them or, on an error, none."""

    @abstractmethod
    def _drop(self) -> None:
        """Drop the old parts, if they are still there and `overwrite` is meant."""

    @abstractmethod
    def _commit(self, ids: Mapping[bytes, bool]) -> None:
        """Make the waiting rows a part, take rows that they replace out of the older ones, and call `_emptied`.

        Args:
            ids: of the waiting rows, and which are errors.
        """

    @abstractmethod
    def _explained(self) -> contextlib.AbstractContextManager[None]:
        """Errors of where the parts are, as a JobError."""
