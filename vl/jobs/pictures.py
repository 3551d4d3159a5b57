"""The images of rows that wait for their part, as files: for outputs that have the images in them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from preprocessing.sources import open_source
from vl.errors import Error, InputError
from vl.jobs.duplicates import digest_of
from vl.jobs.parts import id_of
from vl.jobs.rowfile import Row
from vl.jobs.sources import Asked, Picture, Source, row_key, source_key

_READERS = 8  # threads


def encoded(source: Source) -> bytes:
    """The encoded file of an image. Raises a vl.Error that names the cause."""
    image = source.image if isinstance(source, Asked) else source
    if isinstance(image, Picture):
        return image.read()
    with open_source(image, source_key(image)[:200]) as file:
        return file.read()


class Pictures:
    """Encoded images of rows, each a file of a folder, until their part is written.

    Args:
        folder: made if it is missing; what it holds stays until `clear`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._expected: dict[str, Source] = {}

    def expect(self, key: str, source: Source) -> None:
        """A source whose row will come."""
        self._expected[key] = source

    def fetch(self, rows: Iterable[Row], columns: Iterable[str]) -> list[Row]:
        """Read the images of rows and force them to disk. A row whose image is not to be had any more is an error.

        Args:
            columns: of the answers, which an error has not.
        """
        with ThreadPoolExecutor(_READERS, "vl-shards") as pool:
            return list(pool.map(partial(self._fetched, set(columns)), rows))

    def _fetched(self, columns: Set[str], row: Row) -> Row:
        key = row_key(row)
        source = self._expected.pop(key, None)
        if source is None or "error" in row:
            return row
        try:
            content = encoded(source)
            if row.get("digest") not in (None, digest_of(content)):
                raise InputError(f"{row['image']}: was written again while it was captioned: try it again")
        except Error as error:
            rest = {name: value for name, value in row.items() if name not in columns}
            return {"image": row["image"], "error": str(error)} | rest
        with self._path(key).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return row

    def clear(self) -> None:
        """Their part is there."""
        for path in self._folder.iterdir():
            path.unlink()

    def has(self, key: str) -> bool:
        return self._path(key).exists()

    def read(self, key: str) -> bytes:
        """Of the row with that `row_key`. Raises OSError."""
        return self._path(key).read_bytes()

    def _path(self, key: str) -> Path:
        return self._folder / id_of(key).hex()
