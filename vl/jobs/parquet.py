"""Part files of captions in Parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from vl.errors import ConfigError

try:
    import pyarrow
    from pyarrow import parquet
except ImportError:
    raise ConfigError("Parquet needs pyarrow: pip install 'minimax-vl[jobs]'") from None

_TEXT, _COUNT = pyarrow.string(), pyarrow.int32()
SCHEMA = pyarrow.schema(
    {"id": _TEXT, "image": _TEXT, "caption": _TEXT, "error": _TEXT, "width": _COUNT, "height": _COUNT}
    | {"resolution": pyarrow.list_(_COUNT), "tiles": _COUNT, "prompt_tokens": _COUNT, "image_tokens": _COUNT}
    | {"completion_tokens": _COUNT, "finish_reason": _TEXT, "seconds": pyarrow.float64(), "model": _TEXT}
    | {"prompt": _TEXT, "settings": _TEXT}
)
"""Columns of a part: those of a row in JSON Lines, with `id` first and `settings` as JSON."""


def id_of(name: str) -> bytes:
    """What stands for an image in 16 bytes: the BLAKE2b digest of what its row calls it. `id` has it in hexadecimal."""
    return blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def write_part(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows and force them to disk. Raises OSError."""
    records = [
        {name: _plain(value) for name, value in row.items()}
        | {"id": id_of(row["image"]).hex(), "settings": json.dumps(row["settings"])}
        for row in rows
    ]
    _write(path, pyarrow.Table.from_pylist(records, SCHEMA))


def shrink_part(path: Path, gone: Collection[bytes], out: Path) -> int:
    """Copy the part at `path` to `out` without the rows of the ids `gone`; returns how many rows are left.

    Nothing is written if none is. Raises OSError.
    """
    table = parquet.read_table(path)
    names = {key.hex() for key in gone}
    kept = table.filter(pyarrow.array([value not in names for value in table["id"].to_pylist()], pyarrow.bool_()))
    if kept.num_rows:
        _write(out, kept)
    return kept.num_rows


def _write(path: Path, table: pyarrow.Table) -> None:
    parquet.write_table(table, path, compression="zstd")
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    """Text as UTF-8 has it: bytes of file names that are not, as escapes."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
