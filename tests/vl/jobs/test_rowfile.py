"""The file and the sources of a job, without a model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl.jobs import JobError, RowFile, encode_row


@pytest.mark.parametrize(
    "content",
    [b"Dear diary", b"Dear diary\n", b'{"image": "a.png", "text": "b"}', b"[1]\n", b'{"image": 1}\n', b"\xff\xfe\n"],
)
def test_a_foreign_file_is_left_alone(tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(content)
    with pytest.raises(JobError, match="not a file of captions"), RowFile(out, model="m", prompt="p"):
        pass
    assert out.read_bytes() == content


def test_the_lock_outlives_a_rewrite(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with RowFile(out, model="m", prompt="p") as rows:
        row = {"image": "a.png", "error": "no", "model": "m", "prompt": "p"}
        rows.append([row, row])
    with RowFile(out, model="m", prompt="p"):  # two rows of one image: opening rewrites the file
        assert out.read_bytes() == encode_row(row)
        with pytest.raises(JobError, match="another run"), RowFile(out, model="m", prompt="p"):
            pass


def test_out_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "file").write_text("")
    for name, cause in (
        ("folder.jsonl", "directory"),
        ("pipe.jsonl", "regular file"),
        ("file/out.jsonl", "cannot write"),
        ("out.parquet", "JSON Lines"),
    ):
        with pytest.raises(JobError, match=cause), RowFile(tmp_path / name, model="m", prompt="p"):
            pass


FILE_TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.integers(0xDC80, 0xDCFF).map(chr))


@given(st.dictionaries(FILE_TEXT, st.none() | st.integers() | FILE_TEXT, max_size=4))
def test_rows_are_lines(row: dict[str, Any]) -> None:
    line = encode_row(row)
    assert line.count(b"\n") == 1
    assert json.loads(line) == row
