"""What a part file of rows can be: Parquet, JSON Lines, or a tar of WebDataset samples."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import IO, Protocol

from preprocessing.formats import open_encoded
from preprocessing.unicode import name_bytes
from vl.jobs.duplicates import answer_key
from vl.jobs.made import made_of
from vl.jobs.prompts import CAPTION
from vl.jobs.rowfile import Row, encode_row
from vl.jobs.sources import row_key

ERRORS = "__errors__"
"""The member of a shard that has its error rows, in JSON Lines. WebDataset passes over names of this form."""

DRAFT = "_{}.tmp"
"""Of a part's name. Names that begin with _ are no part to any reader."""

JOURNAL, MANIFEST = "_journal.jsonl", "_manifest.sqlite"
"""In a folder of parts, the rows that wait for theirs, and what is in which part."""

Images = Callable[[str], bytes]
"""The encoded image of the row with that `row_key`."""


class Format(Protocol):
    """How parts are written: whole, and forced to disk. All raise OSError.

    Attributes:
        suffix: of a part file.
        wants_images: whether the images go into the parts.
    """

    suffix: str
    wants_images: bool

    def write(self, path: Path, number: int, rows: Mapping[str, Row], images: Images | None) -> None:
        """The rows, by their `row_key`, as part `number`."""

    def shrink(self, path: Path, gone: Collection[bytes], out: Path) -> int:
        """Copy the part at `path` without the error rows of the ids `gone`; returns how many rows are left.

        Nothing is written if none is.
        """

    def ids(self, path: Path) -> dict[bytes, bool]:
        """The ids of a part's rows, and which are errors."""

    def made(self, path: Path) -> list[Row]:
        """What a part's rows were made with, each once; `images` says whether these are there, if the part tells."""

    def find(self, path: Path, key: bytes) -> Row | None:
        """The caption's row that has this `answer_key`, as `write` got it; None also if the part cannot be read."""


def id_of(key: str) -> bytes:
    """What stands for a source in 16 bytes: the BLAKE2b digest of its `work_key`. `id` has it in hexadecimal."""
    return blake2b(name_bytes(key), digest_size=16).digest()


class JsonLines:
    """Rows as `RowFile` has them."""

    suffix = ".jsonl"
    wants_images = False

    def write(self, path: Path, number: int, rows: Mapping[str, Row], images: Images | None) -> None:
        with path.open("wb") as file:
            file.writelines(encode_row(row) for row in rows.values())
            _to_disk(file)

    def shrink(self, path: Path, gone: Collection[bytes], out: Path) -> int:
        kept = _without(path.read_bytes(), gone)
        if kept:
            with out.open("wb") as file:
                file.writelines(kept)
                _to_disk(file)
        return len(kept)

    def ids(self, path: Path) -> dict[bytes, bool]:
        return _ids(path.read_bytes())

    def made(self, path: Path) -> list[Row]:
        return made_of(map(json.loads, path.read_bytes().splitlines()))

    def find(self, path: Path, key: bytes) -> Row | None:
        try:
            return _found(path.read_bytes(), key)
        except (OSError, ValueError):
            return None


class Shards:
    """A tar of samples: `KEY.jpg` (the file as it was), `KEY.txt` (the caption) and `KEY.json` (the row).

    Answers to several prompts are `KEY.COLUMN.txt`. A key is nine digits, of the part and the row. Rows with an error
    are no samples: they are in `ERRORS`.

    Args:
        columns: of the answers.
        images: whether the images are in it.
    """

    suffix = ".tar"

    def __init__(self, columns: Sequence[str], images: bool = True) -> None:
        self.wants_images = images
        self._columns = columns

    def write(self, path: Path, number: int, rows: Mapping[str, Row], images: Images | None) -> None:
        errors = [encode_row(row) for row in rows.values() if "error" in row]
        good = [(key, row) for key, row in rows.items() if "error" not in row]
        with path.open("wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
            _add(tar, ERRORS, b"".join(errors))
            for index, (key, row) in enumerate(good):
                name = f"{number:05}{index:04}"
                if images is not None:
                    image = images(key)
                    _add(tar, f"{name}.{_suffix_of(image)}", image)
                for column in self._columns:
                    infix = "" if column == CAPTION else f".{column}"
                    _add(tar, f"{name}{infix}.txt", row[column].encode("utf-8", "backslashreplace"))
                _add(tar, f"{name}.json", encode_row(row))
            tar.close()
            _to_disk(file)

    def shrink(self, path: Path, gone: Collection[bytes], out: Path) -> int:
        samples = 0
        with tarfile.open(path) as old, out.open("wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
            kept: list[bytes] = []
            for member in old:
                content = old.extractfile(member)
                assert content is not None
                if member.name == ERRORS:
                    kept = _without(content.read(), gone)
                    _add(tar, ERRORS, b"".join(kept))
                else:
                    samples += member.name.endswith(".json")
                    tar.addfile(member, content)
            tar.close()
            _to_disk(file)
        if not samples + len(kept):
            out.unlink()
        return samples + len(kept)

    def ids(self, path: Path) -> dict[bytes, bool]:
        found: dict[bytes, bool] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name == ERRORS or member.name.endswith(".json"):
                    content = tar.extractfile(member)
                    assert content is not None
                    found |= _ids(content.read())
        return found

    def made(self, path: Path) -> list[Row]:
        with tarfile.open(path) as tar:
            members = [member for member in tar if member.name != ERRORS]
            files = [
                tar.extractfile(member) for member in tar if member.name.endswith(".json") or member.name == ERRORS
            ]
            rows = [json.loads(line) for file in files if file is not None for line in file.read().splitlines()]
        has = any(not member.name.endswith((".json", ".txt")) for member in members)
        return [made | ({"images": has} if members else {}) for made in made_of(rows)]

    def find(self, path: Path, key: bytes) -> Row | None:
        try:
            with tarfile.open(path) as tar:
                files = (tar.extractfile(member) for member in tar if member.name.endswith(".json"))
                found = (_found(file.read(), key) for file in files if file is not None)
                return next((row for row in found if row is not None), None)
        except (OSError, ValueError, tarfile.TarError):
            return None


def _suffix_of(image: bytes) -> str:
    with open_encoded(io.BytesIO(image), "image") as opened:
        kind = (opened.format or "bin").lower()
    return "jpg" if kind in ("jpeg", "mpo") else kind


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _without(lines: bytes, gone: Collection[bytes]) -> list[bytes]:
    return [line for line in lines.splitlines(keepends=True) if id_of(row_key(json.loads(line))) not in gone]


def _ids(lines: bytes) -> dict[bytes, bool]:
    rows = map(json.loads, lines.splitlines())
    return {id_of(row_key(row)): "error" in row for row in rows}


def _found(lines: bytes, key: bytes) -> Row | None:
    rows = map(json.loads, lines.splitlines())
    return next((row for row in rows if "error" not in row and answer_key(row) == key), None)


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
