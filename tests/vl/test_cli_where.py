"""`vl caption` with its engines elsewhere: in processes, and behind `vl serve`; and what does not go together."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vl
import vl.cli.app as vl_app


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (64 + number, 48), (40 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


def captions(out: Path) -> list[tuple[Any, ...]]:
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    names = ("image", "caption", "width", "prompt_tokens", "completion_tokens", "finish_reason")
    return sorted(tuple(row[name] for name in names) for row in rows)


def caption(archive: Path, out: Path, *options: str) -> int:
    return vl_app.run(["caption", str(archive), "--max-new-tokens", "4", "--out", str(out), *options])


@pytest.fixture
def url(tiny_model: vl.MiniMaxVL) -> Iterator[str]:
    """Of a running `vl serve`."""
    uvicorn = pytest.importorskip("uvicorn")
    from vl.server.app import Server
    from vl.server.config import ServerConfig

    config = uvicorn.Config(Server(tiny_model, ServerConfig(names=("tiny",))).app, port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(120)


def test_a_served_model_says_what_it_says_here(archive: Path, tiny_checkpoint: Path, tmp_path: Path, url: str) -> None:
    assert caption(archive, tmp_path / "there.jsonl", "--engine-url", url) == 0
    assert caption(archive, tmp_path / "here.jsonl", "--model", str(tiny_checkpoint), "--device", "cpu") == 0
    assert captions(tmp_path / "there.jsonl") == captions(tmp_path / "here.jsonl")


def test_engines_in_processes(archive: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = ("--model", str(tiny_checkpoint), "--device", "cpu")
    assert caption(archive, tmp_path / "two.jsonl", *model, "--engines", "2") == 0
    assert caption(archive, tmp_path / "one.jsonl", *model) == 0
    assert captions(tmp_path / "two.jsonl") == captions(tmp_path / "one.jsonl")
    assert caption(archive, tmp_path / "two.jsonl", *model) == 0, "a run on one goes on where two were"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine-url", "http://x", "--dtype", "float16"], "--dtype cannot be had of a server"),
        (["--engine-url", "http://x", "--cache-tokens", "4096"], "--cache-tokens cannot be had of a server"),
        (["--engine-url", "http://x", "--engines", "2"], "--engines cannot be had of a server"),
        (["--patience", "3"], "--patience goes with --engine-url"),
        (["--engine", "ray", "--device", "cpu"], "its workers have the devices"),
        (["--engines", "none"], "neither a number from 1 nor auto"),
        (["--no-images"], "shards alone"),
    ],
)
def test_what_does_not_go_together(
    archive: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert caption(archive, tmp_path / "out.jsonl", *options) == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_no_images_without_shards_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert vl_app.run(["caption", "a.png", "--no-images"]) == 2
    assert "goes with --out captions.wds" in " ".join(capsys.readouterr().err.replace("│", " ").split())
