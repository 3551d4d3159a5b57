"""Part files at a URL, such as a bucket of S3: each appears whole, and the bucket says which images have a row."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vl.jobs.errors import JobError
from vl.jobs.manifest import Manifest
from vl.jobs.parts import Format
from vl.jobs.partsink import PartSink
from vl.jobs.pictures import Pictures
from vl.jobs.rowfile import Row, explained
from vl.jobs.sources.files import remote

_INDEX = "_index"
_PART = re.compile(r"part-\d{5,}")
_ID = 16


class Bucket(PartSink):
    """The rows of a captioning job as `part-00000.parquet`, ... below a URL; a context manager.

    Rows become a part after `part_seconds` too, however few, and after an error: what a kill may cost is work, never
    rows. A part is one object, which appears whole or not at all, and is the commit. Beside it goes its index, with the
    ids of its rows; where a crash left none, it is made anew of the part. Nothing is kept on this machine: any other
    may go on. Two runs at once are found out before they write an image twice: a part is only written if none has its
    number. A retried row takes the place of the old one: readers may find neither for a moment, and never both.

    Raises:
        JobError: as `RowFile`, or if the bucket cannot be reached.
        InputError: if fsspec or the package of that kind of URL is missing.
    """

    part_seconds = 300.0

    def __init__(self, url: str, format: Format, **options: Any) -> None:
        super().__init__(url.rstrip("/"), format, **options)
        place = remote(self.out)
        self._fs, self._root = place.fs, place.path.rstrip("/")

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
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._opened:
            try:
                with self._explained():
                    if kind is None:
                        self._drop()
                    self._flush()
            except JobError:
                if kind is None:  # it must not hide what went wrong before
                    raise

    def find(self, key: bytes) -> Row | None:
        """None: an image that came before is captioned again rather than looked for in the bucket."""
        return None

    def _secure(self, rows: list[Row]) -> None:
        """They are in memory alone until they are a part."""

    def _read_index(self) -> None:
        """Learn what the bucket has, and that it is of this run."""
        self._fs.invalidate_cache()
        for number in self._parts():
            with contextlib.suppress(FileNotFoundError):
                self._learn(number, *_parsed(self._fs.cat_file(self._index(number))))
                continue
            self._fs.get_file(self._part(number), str(self._draft))
            ids, made = self._format.ids(self._draft), self._format.made(self._draft)
            self._learn(number, ids, made)
            self._write_index(number, ids, made)

    def _learn(self, number: int, ids: Mapping[bytes, bool], made: list[Row]) -> None:
        for each in made:
            self._check(each)
        self._manifest.add(number, ids, made)

    def _drop(self) -> None:
        if self._overwrite:
            self._fs.invalidate_cache()
            for number in self._parts():
                self._remove(self._index(number))
                self._remove(self._part(number))
            self._manifest.clear()
            self._overwrite = False

    def _commit(self, ids: Mapping[bytes, bool]) -> None:
        """The older parts lose their rows first."""
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
                    f"{self.out} is being written by another run: wait until it ends, or choose another output"
                ) from None
            raise
        made = self._waiting_made()
        self._write_index(number, ids, made)
        self._manifest.add(number, ids, made)
        self._emptied()

    def _shrink(self, number: int, gone: set[bytes]) -> None:
        """Take rows out of a part. Its index goes first: without one the part itself is asked."""
        self._fs.get_file(self._part(number), str(self._draft))
        kept = {id: error for id, error in self._format.ids(self._draft).items() if id not in gone}
        smaller = self._here / "smaller"
        self._remove(self._index(number))
        if self._format.shrink(self._draft, gone, smaller):
            self._fs.put_file(str(smaller), self._part(number))
            self._write_index(number, kept, self._format.made(smaller))
        else:
            self._remove(self._part(number))

    def _write_index(self, number: int, ids: Mapping[bytes, bool], made: list[Row]) -> None:
        body = b"".join(id + bytes([error]) for id, error in ids.items())
        self._fs.pipe_file(self._index(number), json.dumps(made).encode() + b"\n" + body)

    def _parts(self) -> list[int]:
        with contextlib.suppress(FileNotFoundError):
            names = (Path(path).name for path in self._fs.ls(self._root, detail=False))
            suffix = self._format.suffix
            stems = (name.removesuffix(suffix) for name in names if name.endswith(suffix))
            return sorted(int(stem.removeprefix("part-")) for stem in stems if _PART.fullmatch(stem))
        return []

    def _part(self, number: int) -> str:
        return f"{self._root}/{self._name(number)}"

    def _index(self, number: int) -> str:
        return f"{self._root}/{_INDEX}/{number:05}"

    @property
    def _draft(self) -> Path:
        return self._here / "draft"

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return explained(self.out, Exception)  # each file system has errors of its own


def _parsed(index: bytes) -> tuple[dict[bytes, bool], list[Row]]:
    """Ids of rows, and which are errors; and what they were made with, of which earlier versions had one."""
    head, _, body = index.partition(b"\n")
    made = json.loads(head)
    ids = {body[at : at + _ID]: bool(body[at + _ID]) for at in range(0, len(body), _ID + 1)}
    return ids, made if isinstance(made, list) else [made]
