"""A session on the disk: `session.json`, and beside it the safetensors files that it names.

    session.json             what was read, by which model, and the files below; replaced as a whole, last of all
    tokens-X.safetensors     input_ids int64 [tokens]
    states-X.safetensors     layers.N.state float32 [heads, d, d], of the lightning layers
    kv-X-00001.safetensors   layers.N.keys and layers.N.values [tokens, kv_heads, d], of the others; a stretch of tokens

`session.json` has a checksum of each, by which a bit that has changed since is noticed. Whatever ends a save, it names
whole files: the old ones are removed after it has been replaced. Keys and values never change once they are written, so
that the next save of a session that has read more leaves the full files where they are.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from preprocessing.grid import Grid
from vl.engine.checksum import checksum_of
from vl.errors import CheckpointError
from vl.files import drafts, locked, replace_file, sync_folder, write_file

MANIFEST = "session.json"
FORMAT = 3  # 1 had no tools, 2 no digest
SHARD_BYTES = 2**29  # of keys and values in a file, about
_AHEAD = 3  # files that are read and checked while one is used, each by a thread
_FILES = re.compile(r"(tokens|states|kv)-[0-9a-f]{16}(-\d{5})?\.safetensors")


class _Unknown(CheckpointError):
    """Of another version: it is not damaged, and nobody's to replace."""


@dataclass(frozen=True)
class Shard:
    """A file with the keys and values of the tokens from `start` to `stop`."""

    file: str
    start: int
    stop: int


@dataclass(frozen=True)
class SavedImage:
    """An image of a session: the digest of all that its features depend on, and where it lies on its tiles."""

    digest: str
    grid: Grid


@dataclass(frozen=True)
class Saved:
    """What `session.json` says.

    Attributes:
        lineage: of all states of one session, which only ever grows.
        name: of the model, as `vl.load` was given it; a folder by its whole path.
        model: what tells models apart, by the name of each trait.
        tokens: read so far; `total`: of all that is to be read.
        messages: what was read, and `tools`: the functions described to the model, as `preprocessing.Conversation` has
            them. `images`: those of the messages.
        ids, states: files. `shards`: files, rising and without gaps.
        checksums: by file, those of its tensors; versions that knew none have left files without.
    """

    lineage: str
    name: str
    model: Mapping[str, str]
    tokens: int
    total: int
    messages: Sequence[Mapping[str, Any]]
    images: Sequence[SavedImage]
    tools: Sequence[Mapping[str, Any]] = ()
    ids: str = ""
    states: str = ""
    shards: Sequence[Shard] = field(default=())
    checksums: Mapping[str, int] = field(default_factory=dict)

    def names(self) -> set[str]:
        return {self.ids, self.states, *(shard.file for shard in self.shards)}


def folder_of(folder: object) -> Path:
    """Where a session is saved. Raises CheckpointError if that is no path."""
    try:
        if isinstance(folder, str | os.PathLike) and os.fspath(folder) and "\0" not in os.fspath(folder):
            return Path(folder).expanduser().absolute()  # ranks may read it, from where they were started
    except (TypeError, RuntimeError):  # a path of bytes, no such user
        pass
    raise CheckpointError(f"a session is saved in a folder: give its path, not {folder!r:.100}")


def make_folder(folder: object) -> Path:
    """`folder_of`, for what is yet to be read and then to be saved there: makes it, and is the first to complain."""
    place = folder_of(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        if not os.access(place, os.W_OK) and not (place / MANIFEST).exists():  # all may be read already
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _unwritable(place, error) from error
    return place


def check_room(folder: Path, size: int) -> None:
    """Raises CheckpointError if so many bytes cannot be written there: now, and not after hours of reading."""
    try:
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        disk = shutil.disk_usage(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    if size > disk.free and disk.total:  # some file systems do not say
        raise CheckpointError(
            f"no session can be saved in {folder!s:.200}: it takes {size / 1e9:.2g} GB, and {disk.free / 1e9:.2g} GB "
            "are free; make room, or give another folder"
        )


def _unwritable(folder: Path, error: Exception) -> CheckpointError:
    if isinstance(error, FileExistsError):
        return CheckpointError(f"no session can be saved in {folder!s:.200}: a file is there; give another folder")
    return CheckpointError(f"no session can be saved in {folder!s:.200} ({error}): check free space and permissions")


def read_manifest(folder: Path) -> Saved:
    """What `session.json` says. Raises CheckpointError if there is none, or it is not one, or lacks a file."""
    path = folder / MANIFEST
    try:
        contents = {"tools": ()} | json.loads(path.read_text("utf-8"))
        if contents["format"] not in range(1, FORMAT + 1):
            raise _Unknown(
                f"{path} has format {contents['format']!r:.40}, and this version of minimax-vl reads 1 to {FORMAT}: "
                "open it with the version that has saved it, or a newer one, or give another folder"
            )
        if (contents["format"] == FORMAT or "digest" in contents) and contents.pop("digest") != _digest(contents):
            raise ValueError("it is not what was written")
        contents = {"checksums": {}} | contents
        given = {f.name: contents[f.name] for f in fields(Saved)}
        given["shards"] = [Shard(**shard) for shard in given["shards"]]
        given["images"] = [SavedImage(image["digest"], Grid(**image["grid"])) for image in given["images"]]
        saved = Saved(**given)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no session: there is no {MANIFEST} in it") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}): save the session again") from None
    stops = [0, *(shard.stop for shard in saved.shards)]
    if [shard.start for shard in saved.shards] != stops[:-1] or stops[-1] != saved.tokens:
        raise CheckpointError(f"{path} is damaged: its files do not make up {saved.tokens} tokens; save it again")
    for name in sorted(saved.names()):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} lacks {name}, which {MANIFEST} names: copy it too, or read anew")
    return saved


def write_session(
    folder: Path,
    saved: Saved,
    ids: Tensor,
    states: Mapping[str, Tensor],
    stretch: Callable[[int, int], Mapping[str, Tensor]],
    tokens_a_shard: int,
    instead_of: Collection[str] | None = None,
) -> Saved:
    """Write a session, of which `saved` names no files yet, in the place of one that is there.

    Args:
        ids: int64 [tokens].
        states: by name, on the host.
        stretch: the keys and values of the tokens between two numbers by name, on the host.
        instead_of: lineages of the sessions that it may replace; None for any.

    Another save into the folder ends first, whichever process or thread does it.

    Raises:
        CheckpointError: if the folder cannot be written, or holds a session of a later version; what was in it is as it
            was.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            before = _known(folder)
            if before and instead_of is not None and before.lineage not in instead_of:
                raise CheckpointError(
                    f"{folder} holds another session now, which was saved there meanwhile: give another folder, or "
                    "overwrite it"
                )
            _discard(folder, before)
            mark = secrets.token_hex(8)
            kept = before.shards if before and _grown(folder, before, saved, ids) else ()
            shards, checksums = [], {}
            for shard in _stretches(saved.tokens, tokens_a_shard, kept, mark):
                if shard not in kept:
                    checksums[shard.file] = _write(folder / shard.file, stretch(shard.start, shard.stop))
                elif before and shard.file in before.checksums:
                    checksums[shard.file] = before.checksums[shard.file]
                shards.append(shard)
            new = replace(
                saved, ids=f"tokens-{mark}.safetensors", states=f"states-{mark}.safetensors", shards=tuple(shards)
            )
            checksums[new.ids] = _write(folder / new.ids, {"input_ids": ids})
            checksums[new.states] = _write(folder / new.states, states)
            new = replace(new, checksums=checksums)
            sync_folder(folder)
            contents = json.loads(json.dumps({"format": FORMAT} | asdict(new)))  # as it will be read
            write_file(folder / MANIFEST, json.dumps(contents | {"digest": _digest(contents)}) + "\n")
            _discard(folder, new)
    except (OSError, SafetensorError) as error:
        raise _unwritable(folder, error) from error
    return new


def _stretches(tokens: int, tokens_a_shard: int, kept: Sequence[Shard], mark: str) -> Iterator[Shard]:
    """Those that so many tokens make up: of `kept`, and where it has none, new ones whose names have the mark."""
    there = {(shard.start, shard.stop): shard for shard in kept}
    for number, start in enumerate(range(0, tokens, tokens_a_shard), 1):
        stop = min(start + tokens_a_shard, tokens)
        yield there.get((start, stop)) or Shard(f"kv-{mark}-{number:05}.safetensors", start, stop)


def _digest(contents: Mapping[str, Any]) -> str:
    """Of what `session.json` says: a word of it that was changed would be read as another one."""
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def read_tensors(path: Path, checksum: int | None = None) -> dict[str, Tensor]:
    """The tensors of a file, on the host, which are read from the disk when they are used, or for their checksum.

    Raises CheckpointError if it cannot be read, or does not have the checksum.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: copy it from where the session was saved, or read anew") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}): check the disk and permissions") from None
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): save the session again, or read anew") from None
    if checksum is not None and checksum_of(tensors) != checksum:
        raise CheckpointError(
            f"{path} is damaged (it is not what was saved): copy it again from where it is whole, or read the same "
            "documents anew, overwriting the session"
        )
    return tensors


def read_saved(folder: Path, saved: Saved, name: str) -> dict[str, Tensor]:
    """The tensors of one of a session's files, checked. Raises CheckpointError as `read_tensors`."""
    return read_tensors(folder / name, saved.checksums.get(name))


def read_shards(folder: Path, saved: Saved) -> Iterator[tuple[Shard, dict[str, Tensor]]]:
    """The keys and values, file by file; the next ones are read and checked meanwhile. Raises CheckpointError."""
    pool = ThreadPoolExecutor(_AHEAD)
    coming: deque[Future[dict[str, Tensor]]] = deque()
    try:
        for number, shard in enumerate(saved.shards):
            for later in saved.shards[number + len(coming) : number + 1 + _AHEAD]:
                _want(folder / later.file)
                coming.append(pool.submit(read_saved, folder, saved, later.file))
            yield shard, coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _want(path: Path) -> None:
    """Have the system read a file before it is used, where it can be told to."""
    if not hasattr(os, "posix_fadvise"):
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def _write(path: Path, tensors: Mapping[str, Tensor]) -> int:
    """Returns the checksum, which is found while the disk writes."""
    with ThreadPoolExecutor(1) as pool:
        checksum = pool.submit(checksum_of, tensors)
        with replace_file(path) as draft:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft)
        return checksum.result()


def _known(folder: Path) -> Saved | None:
    """The session that is in the folder, if one is."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        return read_manifest(folder)
    except _Unknown:
        raise
    except CheckpointError:  # what is damaged is replaced
        return None


def lineages_in(folder: Path) -> set[str]:
    """Of the session that is in the folder, if one is. Raises CheckpointError if it is of a later version."""
    known = _known(folder)
    return {known.lineage} if known else set()


def _grown(folder: Path, before: Saved, saved: Saved, ids: Tensor) -> bool:
    """Whether `saved` is what `before` is, and maybe more: of a save that was opened twice, each may have read on."""
    if before.lineage != saved.lineage or tuple(before.images) != tuple(saved.images[: len(before.images)]):
        return False
    try:
        known = read_tensors(folder / before.ids)["input_ids"][: before.tokens]
    except (CheckpointError, KeyError):  # what is damaged is replaced
        return False
    return torch.equal(known, ids[: before.tokens])


def _discard(folder: Path, kept: Saved | None) -> None:
    """Remove the files of sessions but those of `kept`."""
    names = kept.names() if kept else set()
    unused = [path for path in folder.iterdir() if _FILES.fullmatch(path.name) and path.name not in names]
    for path in (*unused, *drafts(folder)):
        path.unlink(missing_ok=True)
