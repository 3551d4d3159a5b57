"""Shards and tables of images, and what jobs say of them."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pandas
from PIL import Image

from vl.jobs import caption_images

from .fakes import FakeModel, read


def png(width: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, 5)).save(file, "PNG")
    return file.getvalue()


def make_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pandas.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def captions(tmp_path: Path, *sources: Any, **options: Any) -> dict[str, str]:
    """What a job says of each image, by its name as seen from the folder; errors begin with a !."""
    out = tmp_path / "out" / "captions.jsonl"
    caption_images(FakeModel(), sources, out, overwrite=True, **options)
    rows = read(out)
    said = {row["image"].replace(f"{tmp_path}/", ""): row.get("caption") or f"!{row['error']}" for row in rows}
    assert len(said) == len(rows)
    return said
