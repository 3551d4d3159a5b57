"""Part files of captions in Parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from vl.errors import ConfigError
from vl.jobs.duplicates import answer_key
from vl.jobs.made import made_of
from vl.jobs.parts import Images, id_of
from vl.jobs.prompts import CAPTION, Prompts

try:
    import pyarrow
    from pyarrow import parquet
except ImportError:
    raise ConfigError("Parquet needs pyarrow: pip install 'minimax-vl[jobs]'") from None

from vl.jobs.columns import fields, fitted, restored

_BATCH = 1000  # rows that are held at once
_TEXT, _COUNT = pyarrow.string(), pyarrow.int32()


def schema(prompts: Prompts) -> pyarrow.Schema:
    """Columns of a part: those of a row in JSON Lines, with `id` first, and as JSON `settings` and several prompts."""
    known = {
        **{"error": _TEXT, "digest": _TEXT, "width": _COUNT, "height": _COUNT, "resolution": pyarrow.list_(_COUNT)},
        **{"tiles": _COUNT, "prompt_tokens": _COUNT, "image_tokens": _COUNT, "completion_tokens": _COUNT},
        **{"finish_reason": _TEXT, "seconds": pyarrow.float64(), "model": _TEXT, "prompt": _TEXT, "settings": _TEXT},
    }
    texts = [pyarrow.field(name, _TEXT) for name in ("id", "image", *prompts.columns)]
    return pyarrow.schema([*texts, *fields(prompts), *(pyarrow.field(name, kind) for name, kind in known.items())])


class Parquet:
    """Rows as a table, compressed; `prompts` say which columns answers have."""

    suffix = ".parquet"
    wants_images = False

    def __init__(self, prompts: Prompts) -> None:
        self._schema = schema(prompts)
        self._values = {field.name: field for field in fields(prompts)}
        self._single = prompts.columns == (CAPTION,)

    def write(self, path: Path, number: int, rows: Mapping[str, dict[str, Any]], images: Images | None) -> None:
        records = [self._record(row) | {"id": id_of(key).hex()} for key, row in rows.items()]
        _write(path, pyarrow.Table.from_pylist(records, self._schema))

    def _record(self, row: Mapping[str, Any]) -> dict[str, Any]:
        values = {name: fitted(row[name], field) for name, field in self._values.items() if name in row}
        return {name: _plain(value) for name, value in row.items() if name not in values} | values

    def shrink(self, path: Path, gone: Collection[bytes], out: Path) -> int:
        table = parquet.read_table(path)
        names = {key.hex() for key in gone}
        kept = table.filter(pyarrow.array([value not in names for value in table["id"].to_pylist()], pyarrow.bool_()))
        if kept.num_rows:
            _write(out, kept)
        return kept.num_rows

    def ids(self, path: Path) -> dict[bytes, bool]:
        table = parquet.read_table(path, columns=["id", "error"])
        return {bytes.fromhex(row["id"]): row["error"] is not None for row in table.to_pylist()}

    def made(self, path: Path) -> list[dict[str, Any]]:
        table = parquet.read_table(path, columns=["model", "prompt", "settings"])
        columns = parquet.read_schema(path).names
        rows = {tuple(row.items()): row for row in table.to_pylist()}.values()
        return made_of(
            row | {"prompt": _prompt(row["prompt"], columns), "settings": _parsed(row["settings"])} for row in rows
        )

    def find(self, path: Path, key: bytes) -> dict[str, Any] | None:
        try:
            table = parquet.read_table(path)
            settings = {"settings": json.loads(table["settings"][0].as_py())}
            asked = zip(*(table[name].to_pylist() for name in ("digest", "prompt", "error")), strict=True)
        except (OSError, LookupError, pyarrow.ArrowException):
            return None
        for number, (digest, prompt, error) in enumerate(asked):
            if error is None and answer_key({"digest": digest, "prompt": prompt} | settings) == key:
                row: dict[str, Any] = table.slice(number, 1).to_pylist()[0]
                del row["id"], row["error"]
                row |= {name: restored(row[name], field) for name, field in self._values.items()}
                row["settings"] = json.loads(row["settings"])
                return row | {"prompt": row["prompt"] if self._single else json.loads(row["prompt"])}
        return None


def records(file: IO[bytes]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The rows of a part with their ids, as JSON Lines would have them."""
    opened = parquet.ParquetFile(file)
    columns = {field.name: field for field in opened.schema_arrow}
    values = {name: field for name, field in columns.items() if field.metadata}
    for batch in opened.iter_batches(_BATCH):
        for row in batch.to_pylist():
            id = bytes.fromhex(row.pop("id"))
            error = row.pop("error")
            if error is not None:
                row = {"image": row["image"], "error": error} | {k: v for k, v in row.items() if v is not None}
            row |= {name: restored(row[name], field) for name, field in values.items() if name in row}
            yield id, row | {"settings": _parsed(row["settings"]), "prompt": _prompt(row.get("prompt"), columns)}


def _prompt(text: str | None, columns: Collection[str]) -> Any:
    """Several prompts are JSON, by their columns."""
    if text is None or not text.startswith("{"):
        return text
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, dict) and found.keys() <= set(columns) else text


@lru_cache(256)
def _parsed(text: str) -> Any:
    return json.loads(text)


def _write(path: Path, table: pyarrow.Table) -> None:
    parquet.write_table(table, path, compression="zstd")
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    """Text as UTF-8 has it, bytes of file names that are not as escapes; and objects as JSON."""
    if isinstance(value, dict):
        value = json.dumps(value)
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
