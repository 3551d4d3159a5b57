"""Part files of captions in Parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
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


def schema(answers: Iterable[str]) -> pyarrow.Schema:
    """Columns of a part: those of a row in JSON Lines, with `id` first, and as JSON `settings` and several prompts."""
    return pyarrow.schema(
        {"id": _TEXT, "image": _TEXT}
        | dict.fromkeys(answers, _TEXT)
        | {"error": _TEXT, "width": _COUNT, "height": _COUNT, "resolution": pyarrow.list_(_COUNT), "tiles": _COUNT}
        | {"prompt_tokens": _COUNT, "image_tokens": _COUNT, "completion_tokens": _COUNT, "finish_reason": _TEXT}
        | {"seconds": pyarrow.float64(), "model": _TEXT, "prompt": _TEXT, "settings": _TEXT}
    )


def id_of(key: str) -> bytes:
    """What stands for a source in 16 bytes: the BLAKE2b digest of its `work_key`. `id` has it in hexadecimal."""
    return blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def write_part(path: Path, rows: Mapping[str, dict[str, Any]], answers: Iterable[str]) -> None:
    """Write rows, by their `row_key`, and force them to disk. Raises OSError."""
    records = [
        {name: _plain(value) for name, value in row.items()} | {"id": id_of(key).hex()} for key, row in rows.items()
    ]
    _write(path, pyarrow.Table.from_pylist(records, schema(answers)))


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
    """Text as UTF-8 has it, bytes of file names that are not as escapes; and objects as JSON."""
    if isinstance(value, dict):
        value = json.dumps(value)
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
