"""Writing a file whole: by a draft and a rename."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vl.files import drafts, replace_file, write_file


@pytest.mark.parametrize("contents", ["a line\nünïcödé 漢字\r\n", b"\x00\xff\r\n", ""])
def test_contents_are_written_as_they_are(tmp_path: Path, contents: str | bytes) -> None:
    path = tmp_path / "file"
    for _ in range(2):
        write_file(path, contents)
        assert path.read_bytes() == (contents.encode() if isinstance(contents, str) else contents)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    write_file(tmp_path / "text", "a")
    with replace_file(tmp_path / "tensors") as draft:
        save_file({"a": torch.ones(2)}, draft)
    assert torch.equal(load_file(tmp_path / "tensors")["a"], torch.ones(2))
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "other").stat().st_mode}


def test_an_error_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(path, "old")

    def interrupted() -> None:
        with replace_file(path) as draft:
            draft.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    def no_space(*args: object) -> None:
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, no_space)
            with pytest.raises(OSError, match="No space"):
                write_file(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["absent/file", "folder", "a\0b", "n" * 5000, ""])
def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):  # noqa: PT011 (the sentence is the system's)
        write_file(tmp_path / name, "a")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


KILL = """
import os, signal, sys
from vl.files import replace_file
with replace_file(sys.argv[1]) as draft:
    draft.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    write_file(tmp_path / "file", "old")
    done = subprocess.run(
        [sys.executable, "-c", KILL, str(tmp_path / "file")], cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "old"


def test_drafts_are_what_killed_writers_left(tmp_path: Path) -> None:
    """safetensors has a draft of its own beside ours; alone, a file of such a name is somebody else's."""
    (tmp_path / ".tmpAb12Cd").touch()
    (tmp_path / ".mine.draft").touch()
    assert drafts(tmp_path) == []
    (tmp_path / ".0123456789abcdef.draft").touch()
    assert {path.name for path in drafts(tmp_path)} == {".0123456789abcdef.draft", ".tmpAb12Cd"}
