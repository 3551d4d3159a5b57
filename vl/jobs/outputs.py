"""Where a job's rows go, by the name of the output."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vl.jobs.rowfile import RowFile, check_out

if TYPE_CHECKING:
    from vl.jobs.partfolder import PartFolder

Rows: TypeAlias = "RowFile | PartFolder"


def check_output(path: str | os.PathLike[str]) -> None:
    """Whether `open_rows` can write this: `captions.jsonl`, or the folder `captions.parquet`.

    Raises:
        JobError: if the suffix is another.
        ConfigError: if Parquet's package is missing.
    """
    if _is_parquet(path):
        import vl.jobs.parquet  # noqa: F401  (raises)
    else:
        check_out(path)


def open_rows(path: str | os.PathLike[str], **options: Any) -> Rows:
    """A `PartFolder` for a name in `.parquet`, or a `RowFile`; `options` are theirs. Raises as `check_output`."""
    check_output(path)
    if _is_parquet(path):
        from vl.jobs.partfolder import PartFolder

        return PartFolder(path, **options)
    return RowFile(path, **options)


def _is_parquet(path: str | os.PathLike[str]) -> bool:
    return Path(path).suffix.lower() == ".parquet"
