"""Tar files of images, WebDataset's layout: read where they lie, member by member."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from functools import partial
from typing import IO

from vl.jobs.sources.files import File, explained
from vl.jobs.sources.names import Picture, broken
from vl.jobs.sources.packed import why_not_read
from vl.jobs.sources.passed import Passed


def shard_images(file: File, passed: Passed) -> Iterator[Picture]:
    """The images of a `.tar` file in its order, named like `cats.tar/000/7.jpg`.

    Only headers are read here; an image's bytes are read when it is due. A link is the file before it that it leads to.
    What is missing at the end of a torn file is one row with an error, and so are a second image of the same name, a
    link that leads nowhere, another archive behind the end, and a file that is compressed.

    Raises:
        InputError: if the file cannot be opened.
    """
    names: set[str] = set()
    places: dict[str, tuple[int, int]] = {}  # of files, where their bytes begin and how many there are
    with explained(file.name), file.open() as opened:
        if (cause := why_not_read(opened)) is not None:
            yield broken(file.name, cause)
            return
        try:
            with tarfile.open(fileobj=opened, mode="r:") as tar:
                for entry in tar:
                    place = _place(entry, places)
                    if place is not None:
                        places[posixpath.normpath(entry.name)] = place
                    if not _taken(entry, passed):
                        continue
                    name = f"{file.name}/{entry.name}"
                    if entry.name in names:
                        yield broken(f"{name} (at byte {entry.offset})", "an image before it has this name: rename one")
                        continue
                    names.add(entry.name)
                    if place is not None:
                        yield Picture(name, partial(file.read, *place))
                    elif entry.issparse():
                        yield broken(name, "is stored with holes: write the shard again without --sparse")
                    else:
                        why = f"links to {entry.linkname!r:.200}, which is no file before it in the shard"
                        yield broken(name, f"{why}: put the image itself there")
                _check_end(opened, tar.offset)
        except (tarfile.TarError, EOFError) as error:
            yield broken(f"{file.name}/(the rest)", f"not a whole tar file ({error}); write or download it again")


def _taken(entry: tarfile.TarInfo, passed: Passed) -> bool:
    """Whether a member is an image or a link to one, by its name; otherwise it is counted, but for a folder."""
    if entry.isdir():
        return False
    if not (entry.isfile() or entry.islnk() or entry.issym()):
        passed["not a file"] += 1
        return False
    return passed.takes(entry.name)


def _place(entry: tarfile.TarInfo, places: Mapping[str, tuple[int, int]]) -> tuple[int, int] | None:
    """Where a member's bytes are, if they are in one piece."""
    if entry.isfile():
        return None if entry.issparse() else (entry.offset_data, entry.size)
    if entry.issym():
        return places.get(posixpath.normpath(posixpath.join(posixpath.dirname(entry.name), entry.linkname)))
    return places.get(posixpath.normpath(entry.linkname)) if entry.islnk() else None


def _check_end(opened: IO[bytes], at: int) -> None:
    """Raises TarError if what lies there is no end: tarfile takes a header that is cut or damaged for one.

    Nor is it the end of all where another archive was put behind this one, which is filled up to a whole record.
    """
    opened.seek(at)
    end = opened.read(tarfile.RECORDSIZE + tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it stops before its end mark")
    if any(end[: tarfile.BLOCKSIZE]):
        raise tarfile.ReadError(f"damaged at byte {at:,}")
    if any(end):
        raise tarfile.ReadError(f"something follows its end mark, which is at byte {at:,}: several files put together?")
