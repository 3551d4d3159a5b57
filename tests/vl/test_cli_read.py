"""`vl read` and `vl ask`: what is read once is asked from another process, and goes on after an interruption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vl
import vl.cli.app as vl_app

SMALL = ["--prefill-tokens", "64", "--page-size", "16"]
TEXT = "A red circle at the top left and a blue square in the center. " * 4


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text(TEXT)
    return path


def expected(model: vl.MiniMaxVL, question: str, *images: Image.Image) -> str:
    parts = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": question}]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": f"notes.txt\n\n{TEXT}"},
        {"role": "user", "content": parts},
    ]
    return model.chat(messages, max_new_tokens=5)


def test_read_and_ask(
    notes: Path, tmp_path: Path, tiny_checkpoint: Path, tiny_model: vl.MiniMaxVL, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, picture = tmp_path / "session", tmp_path / "red.png"
    image = Image.new("RGB", (64, 48), "red")
    image.save(picture)
    assert vl_app.run(["read", str(notes), "--session", str(folder), "--model", str(tiny_checkpoint), *SMALL]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "tokens read, saved in" in captured.err
    ask = ["ask", str(folder), "Which colour?", "--max-new-tokens", "5"]
    assert vl_app.run(ask) == 0  # by the model that has read it
    assert capsys.readouterr().out == expected(tiny_model, "Which colour?") + "\n"
    assert vl_app.run([*ask, "--image", str(picture), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["text"] == expected(tiny_model, "Which colour?", image)
    assert told["usage"]["cached_tokens"] > 40


@pytest.mark.parametrize("quantised", [True, False])
def test_the_model_that_has_read_it_is_loaded_as_it_was(
    notes: Path, tmp_path: Path, tiny_text_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, quantised: bool
) -> None:
    """Dtype and quantization need not be given again, and a folder's name holds from anywhere."""
    monkeypatch.chdir(tiny_text_checkpoint.parent)
    how = ["--dtype", "bfloat16", *(["--quantization", "int8"] if quantised else [])]
    name = f"./{tiny_text_checkpoint.name}"
    assert vl_app.run(["read", str(notes), "--session", str(tmp_path / "s"), "--model", name, *how, *SMALL]) == 0
    monkeypatch.chdir(tmp_path)
    ask = ["ask", "s", "Which?", "--max-new-tokens", "1"]
    assert vl_app.run(ask) == 0
    assert vl_app.run([*ask, "--dtype", "float32"]) == 3
    assert vl_app.run([*ask, "--model", str(tiny_text_checkpoint)]) == (3 if quantised else 0)


def test_a_session_of_something_else_is_kept(
    notes: Path, tmp_path: Path, tiny_text_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["read", str(notes), "--session", str(tmp_path / "s"), "--model", str(tiny_text_checkpoint), *SMALL]
    assert vl_app.run(command) == 0
    before = (tmp_path / "s" / "session.json").read_bytes()
    assert vl_app.run(command) == 0  # all is read already
    assert (tmp_path / "s" / "session.json").read_bytes() == before
    notes.write_text("Else.")
    assert vl_app.run(command) == 3
    assert "has read something else" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "s" / "session.json").read_bytes() == before
    assert vl_app.run([*command, "--overwrite"]) == 0
    assert (tmp_path / "s" / "session.json").read_bytes() != before


def test_a_model_that_was_moved_can_be_named(
    notes: Path, tmp_path: Path, tiny_text_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(tiny_text_checkpoint, tmp_path / "model")
    assert vl_app.run(["read", str(notes), "--session", str(tmp_path / "s"), "--model", str(model), *SMALL]) == 0
    moved = model.rename(tmp_path / "moved")
    ask = ["ask", str(tmp_path / "s"), "Which?", "--max-new-tokens", "1"]
    assert vl_app.run(ask) == 2
    assert "not there any more: say where that model is" in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert vl_app.run([*ask, "--model", str(moved)]) == 0


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["read", "nowhere.txt", "--session", "s"], "nowhere.txt: cannot be read"),
        (["read", __file__, "--session", __file__], "a file is there"),
        (["ask", "nowhere", "What?"], "nowhere holds no session"),
    ],
)
def test_what_is_not_there_is_said_before_a_model_is_loaded(
    command: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vl.cli.loading.Loading.load", lambda *args, **options: pytest.fail("loaded"))
    assert vl_app.run(command) == 3
    assert told in " ".join(capsys.readouterr().err.split())


def test_the_defaults_are_those_of_the_library() -> None:
    from vl.cli import read
    from vl.documents import PAGE_SIDE
    from vl.engine.session import SAVE_EVERY

    assert (read.SAVE_EVERY, read.PAGE_SIDE) == (SAVE_EVERY, PAGE_SIDE)
