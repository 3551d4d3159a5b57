"""Tar files of images, WebDataset's layout: read where they lie, member by member."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from functools import partial

from vl.jobs.sources.files import File, explained
from vl.jobs.sources.names import Picture, broken
from vl.jobs.sources.passed import Passed


def shard_images(file: File, passed: Passed) -> Iterator[Picture]:
    """The images of a `.tar` file in its order, named like `cats.tar/000/7.jpg`.

    Only headers are read here; an image's bytes are read when it is due. What is missing at the end of a torn file is
    one row with an error.

    Raises:
        InputError: if the file cannot be opened.
    """
    with explained(file.name), file.open() as opened:
        try:
            with tarfile.open(fileobj=opened, mode="r:") as tar:
                for entry in tar:
                    if entry.isfile() and passed.takes(entry.name):
                        read = partial(file.read, entry.offset_data, entry.size)
                        yield Picture(f"{file.name}/{entry.name}", read)
        except (tarfile.TarError, EOFError) as error:
            yield broken(f"{file.name}/(the rest)", f"not a whole tar file ({error}); write or download it again")
