"""Tar files of images, WebDataset's layout: read where they lie, member by member."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from functools import partial
from typing import IO

from vl.jobs.sources.files import File, explained
from vl.jobs.sources.names import Picture, broken
from vl.jobs.sources.packed import why_not_read
from vl.jobs.sources.passed import Passed


def shard_images(file: File, passed: Passed) -> Iterator[Picture]:
    """The images of a `.tar` file in its order, named like `cats.tar/000/7.jpg`.

    Only headers are read here; an image's bytes are read when it is due. What is missing at the end of a torn file is
    one row with an error, and so are a second image of the same name and a file that is compressed.

    Raises:
        InputError: if the file cannot be opened.
    """
    names: set[str] = set()
    with explained(file.name), file.open() as opened:
        if (cause := why_not_read(opened)) is not None:
            yield broken(file.name, cause)
            return
        try:
            with tarfile.open(fileobj=opened, mode="r:") as tar:
                for entry in tar:
                    if not (entry.isfile() and passed.takes(entry.name)):
                        continue
                    name = f"{file.name}/{entry.name}"
                    if entry.name in names:
                        yield broken(f"{name} (at byte {entry.offset})", "an image before it has this name: rename one")
                    else:
                        names.add(entry.name)
                        yield Picture(name, partial(file.read, entry.offset_data, entry.size))
                _check_end(opened, tar.offset)
        except (tarfile.TarError, EOFError) as error:
            yield broken(f"{file.name}/(the rest)", f"not a whole tar file ({error}); write or download it again")


def _check_end(opened: IO[bytes], at: int) -> None:
    """Raises TarError if what lies there is no end: tarfile takes a header that is cut or damaged for one."""
    opened.seek(at)
    block = opened.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it stops before its end mark")
    if any(block):
        raise tarfile.ReadError(f"damaged at byte {at:,}")
