"""`vl caption --out` in a process of its own that is killed, interrupted or left without a reader."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from forkserver import Popen
from PIL import Image

import vl
import vl.cli.app as vl_app

ROOT = Path(vl.__file__).parents[1]
IMAGES = 24


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    for number in range(IMAGES):
        Image.new("RGB", (64 + number, 48), (10 * number, 0, 0)).save(folder / f"{number:03}.png")
    return folder


def arguments(archive: Path, model: Path, out: Path) -> list[str]:
    options = ["--model", str(model), "--max-new-tokens", "8", "--batch-size", "2", "--out", str(out)]
    return ["caption", str(archive), *options]


HELD = """
import sys, time
from pathlib import Path
from vl.cli.app import main
from vl.jobs import captioning

last, go = sys.argv.pop(1), Path(sys.argv.pop(1))
ask = captioning.ask_here

def held(processor, image, texts):
    while str(image).endswith(last) and not go.exists():
        time.sleep(0.01)
    return ask(processor, image, texts)

captioning.ask_here = held
main()
"""


def start_held(args: list[str], go: Path) -> subprocess.Popen[bytes]:
    """A job over the archive that cannot end before there is a file `go`: its last image does not come."""
    return start(args, ["-c", HELD, f"{IMAGES - 1:03}.png", str(go)])


def start(
    args: list[str], how: Sequence[str] = ("-m", "vl.cli"), *, stdout: int = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    return Popen(
        [sys.executable, *how, *args],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


def wait_for_rows(child: subprocess.Popen[bytes], out: Path, rows: int) -> None:
    deadline = time.monotonic() + 200
    while not out.exists() or out.read_bytes().count(b"\n") < rows:
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the time that each took, which is another in every run."""
    assert all(row["seconds"] > 0 for row in rows)
    return [row | {"seconds": None} for row in rows]


def test_killed_twice_then_finished(archive: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"
    for rows in (3, 11):
        child = start_held(arguments(archive, tiny_checkpoint, out), tmp_path / "go")
        wait_for_rows(child, out, rows)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        child.communicate()
        assert out.read_bytes().count(b"\n") < IMAGES
    assert vl_app.run(arguments(archive, tiny_checkpoint, out)) == 0
    reference = tmp_path / "reference.jsonl"
    assert vl_app.run(arguments(archive, tiny_checkpoint, reference)) == 0
    assert [row["image"] for row in read(out)] == [str(path) for path in sorted(archive.iterdir())]
    assert untimed(read(out)) == untimed(read(reference))


def test_ctrl_c(archive: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"
    child = start_held(arguments(archive, tiny_checkpoint, out), tmp_path / "go")
    wait_for_rows(child, out, 3)
    child.send_signal(signal.SIGINT)
    (tmp_path / "go").touch()  # Python waits for its threads
    _, err = child.communicate(timeout=200)
    assert child.returncode == 130
    assert b"run the same command again" in err
    assert b"Traceback" not in err
    rows = read(out)
    assert 3 <= len(rows) < IMAGES
    assert len({row["image"] for row in rows}) == len(rows)


def test_a_reader_that_leaves(archive: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    child = start_held([*arguments(archive, tiny_checkpoint, tmp_path / "captions.jsonl"), "--json"], tmp_path / "go")
    assert child.stdout is not None
    assert child.stderr is not None
    json.loads(child.stdout.readline())
    child.stdout.close()
    (tmp_path / "go").touch()
    assert child.stderr.read() == b""
    assert child.wait(200) == 141, "as of a command that SIGPIPE ended; 1 would say that images failed"
    child.stderr.close()


@pytest.mark.parametrize(
    "command", ["plan", "--help", "caption", "caption --json", "eval", "eval --json", "eval --list"]
)
def test_a_reader_that_never_was(command: str, archive: Path, tiny_checkpoint: Path) -> None:
    """`vl ... | true`: the first write fails, whoever makes it."""
    args = command.split()
    if args[0] == "caption":
        args += [str(archive / "000.png"), "--model", str(tiny_checkpoint), "--max-new-tokens", "2"]
    if args[0] == "eval" and args[-1] != "--list":
        args += ["words", "--count", "1", "--model", str(tiny_checkpoint), "--max-new-tokens", "2"]
    read_end, write_end = os.pipe()
    os.close(read_end)
    child = start(args, stdout=write_end)
    os.close(write_end)
    _, err = child.communicate(timeout=200)
    assert (err, child.returncode) == (b"", 141)
