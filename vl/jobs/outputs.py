"""Where a job's rows go, by the name of the output."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vl.jobs.errors import JobError
from vl.jobs.parts import Format, JsonLines, Shards
from vl.jobs.prompts import Prompts
from vl.jobs.rowfile import SUFFIXES, RowFile, check_out
from vl.jobs.sources.files import is_remote, remote

if TYPE_CHECKING:
    from vl.jobs.bucket import Bucket
    from vl.jobs.partfolder import PartFolder

Rows: TypeAlias = "RowFile | PartFolder | Bucket"

PARQUET, SHARDS = ".parquet", ".wds"


def check_output(path: str | os.PathLike[str], *, images: bool = True) -> None:
    """Whether `open_rows` can write this: `captions.jsonl`, the folders `captions.parquet` and `captions.wds`, or a URL
    of any of these names, which is then that of a folder.

    Raises:
        JobError: if the suffix is another, or `images` are to be left out of what never has them.
        InputError: if a URL's package is missing.
        ConfigError: if Parquet's package is missing.
    """
    name = os.fspath(path)
    suffix = _suffix(name)
    if not images and suffix != SHARDS:
        raise JobError(f"{name} has no images in it: they are in shards alone, named like captions{SHARDS}")
    if suffix == ".tar":
        raise JobError(f"cannot write {name}: shards are in a folder: name it like {Path(name).stem}{SHARDS}")
    if is_remote(name):
        if name[:4].lower() in ("http", "file"):
            raise JobError(
                f"cannot write {name}: give a path, or the URL of a bucket like s3://bucket/captions.parquet"
            )
        remote(name)
        if suffix in SUFFIXES:
            return
    if suffix == PARQUET:
        import vl.jobs.parquet  # noqa: F401  (raises)
    elif suffix != SHARDS:
        check_out(path)


def open_rows(path: str | os.PathLike[str], *, images: bool = True, **options: Any) -> Rows:
    """A `Bucket` for a URL; else a `PartFolder` for a name in `.parquet` or `.wds`, or a `RowFile`.

    Args:
        images: whether the shards of `.wds` have the images in them.
        options: theirs.

    Raises:
        JobError, InputError, ConfigError: as `check_output`.
    """
    check_output(path, images=images)
    name = os.fspath(path)
    format = _format(_suffix(name), options["prompt"], images)
    if is_remote(name):
        from vl.jobs.bucket import Bucket

        return Bucket(name, format, **options)
    if _suffix(name) in SUFFIXES:
        return RowFile(path, **options)
    from vl.jobs.partfolder import PartFolder

    return PartFolder(path, format, **options)


def _format(suffix: str, prompt: Any, images: bool) -> Format:
    prompts = Prompts.of(prompt)
    if suffix == SHARDS:
        return Shards(prompts.columns, images)
    if suffix in SUFFIXES:
        return JsonLines()
    from vl.jobs.parquet import Parquet

    return Parquet(prompts)


def _suffix(name: str) -> str:
    return os.path.splitext(name.rstrip("/"))[1].lower()
