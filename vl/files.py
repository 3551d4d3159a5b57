"""Files that are whole or not there: written as a draft in the same folder, and renamed when they are on the disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A draft to write, which takes the place of `path` when the block ends; after an error, `path` is as it was.

    The draft is an empty file with the permissions of any new file, which may be written, or replaced by a library
    that makes its own. Whatever ends the program, `path` holds the old contents or the new ones, never a part.

    Raises:
        OSError: if the draft cannot be made, written or renamed; callers know what the file is for and say so.
    """
    path = Path(path)
    if "\0" in str(path):  # which Python reports by a ValueError
        raise OSError(errno.EINVAL, "a file name cannot hold a NUL character", str(path))
    draft = path.parent / f".{secrets.token_hex(8)}.draft"
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        mode = stat.S_IMODE(draft.stat().st_mode)
        yield draft
        draft.chmod(mode)  # safetensors, for one, makes files that only their owner can read
        sync(draft)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    sync_folder(path.parent)


def drafts(folder: Path) -> list[Path]:
    """What writers that were killed left in a folder: `replace_file`'s drafts and, beside them, safetensors' own."""
    left = [path for path in folder.glob(".*.draft") if re.fullmatch(r"\.[0-9a-f]{16}\.draft", path.name)]
    return [*left, *folder.glob(".tmp??????")] if left else []


def write_file(path: str | os.PathLike[str], contents: str | bytes) -> None:
    """Write a whole file, text as UTF-8, by `replace_file`. Raises OSError as it does."""
    with replace_file(path) as draft:
        draft.write_bytes(contents.encode() if isinstance(contents, str) else contents)


@contextlib.contextmanager
def locked(folder: Path, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """A block that nobody else is in for this folder, in whatever process or thread; but others who share it.

    Nobody waits for anybody where a file system has no locks, or the folder is not there.

    Raises:
        BlockingIOError: if somebody is in it and `wait` is false.
    """
    descriptor = None
    try:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:
            pass
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, on file systems that can promise it."""
    with contextlib.suppress(OSError):
        sync(folder)
