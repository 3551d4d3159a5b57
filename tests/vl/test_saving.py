"""Saving over another model: whatever ends a save, the folder holds the old model, the new one, or none that loads."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forkserver import run

import vl
from vl.errors import CheckpointError, ConfigError
from vl.saving import replace_model

ROOT = Path(__file__).parents[2]
FOREIGN = {"README.md": "mine", "adapter_model.safetensors": "mine", "modeling.py": "mine", ".hidden": "mine"}
STALE = (
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "quantize_config.json",
    "model.safetensors",
    "model-00001-of-00009.safetensors",
)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def old(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A folder with a model and what a user put beside it."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    for name, text in FOREIGN.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def new(tiny_checkpoint: Path) -> vl.MiniMaxVL:
    """A model with other weights and another template than the one in `old`."""
    model = vl.load(tiny_checkpoint, device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    return model


def first_weight(model: vl.MiniMaxVL) -> torch.Tensor:
    return model.released_tensors()["language_model.model.embed_tokens.weight"].read()


def state(folder: Path, before: dict[str, bytes], new: vl.MiniMaxVL) -> str:
    """Which model the folder holds; fails if it is neither and loads all the same."""
    message = ""
    try:
        found = vl.load(folder, device="cpu")
    except vl.Error as error:
        message = str(error)
    if message:
        assert str(folder) in message
        return "none"
    if contents(folder) == before:
        return "old"
    assert torch.equal(first_weight(found), first_weight(new))
    assert found.config == new.config
    return "new"


def test_a_save_leaves_the_new_model_alone_and_foreign_files(old: Path, new: vl.MiniMaxVL) -> None:
    for name in STALE:
        (old / name).write_bytes(b"old")
    index = json.loads((old / "model.safetensors.index.json").read_text())
    index["weight_map"]["image_newline"] = "odd-name.safetensors"
    (old / "model.safetensors.index.json").write_text(json.dumps(index))
    (old / "odd-name.safetensors").write_bytes(b"old")
    assert new.save(old) == old
    written = {"config.json", "generation_config.json", "preprocessor_config.json", "model.safetensors"}
    written |= {"tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in old.iterdir()} == written | FOREIGN.keys()
    assert all((old / name).read_text() == text for name, text in FOREIGN.items())
    assert state(old, {}, new) == "new"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.json"])
def test_a_folder_with_the_name_of_a_file_keeps_what_is_in_it(tmp_path: Path, new: vl.MiniMaxVL, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("mine")
    if name == "vocab.json":  # which a save does not write
        new.save(tmp_path)
    else:
        with pytest.raises(CheckpointError, match=name):
            new.save(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "mine.txt").read_text() == "mine"


def test_saved_files_have_the_permissions_of_any_new_file(tmp_path: Path, new: vl.MiniMaxVL) -> None:
    new.save(tmp_path / "model")
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert modes == {(tmp_path / "other").stat().st_mode}


class Killed(BaseException):
    """As a signal would, at any call, and for all calls after it: nothing can be put back."""


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int, *, once: bool, error: BaseException) -> list[int]:
    """Makes the `number`-th renaming fail, and, unless `once`, all after it."""
    calls = [0]

    def replace(source: Any, target: Any, replace: Any = os.replace) -> None:
        calls[0] += 1
        if calls[0] == number or (calls[0] > number and not once):
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    return calls


@pytest.mark.parametrize("once", [True, False], ids=["put back", "not put back"])
def test_killed_at_every_renaming(
    old: Path, new: vl.MiniMaxVL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, once: bool
) -> None:
    before, found = contents(old), []
    for number in range(1, 1000):
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(old, folder)
        with monkeypatch.context() as patch:
            calls = kill_at(patch, number, once=once, error=Killed())
            try:
                new.save(folder)
            except Killed:
                pass
            else:
                assert calls[0] < number
                break
        found.append(state(folder, before, new))
        assert all((folder / name).read_text() == text for name, text in FOREIGN.items())
        new.save(folder)  # the next save works, and leaves nothing of this one
        assert state(folder, before, new) == "new"
        assert not list(folder.glob(".unfinished*"))
    assert len(found) > 15
    if once:
        assert set(found) == {"old"}
    else:
        assert found == sorted(found, key=["old", "none", "new"].index)
        assert found.count("none") > 10


def test_what_a_killed_save_left_is_named(old: Path, new: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(old)
    with monkeypatch.context() as patch:
        kill_at(patch, 8, once=False, error=Killed())
        with pytest.raises(Killed):
            new.save(old)
    with pytest.raises(ConfigError, match=r"a save into it was cut short.* back from .*/old"):
        vl.load(old)
    (kept,) = old.glob(".unfinished-save-*/old")
    for path in kept.iterdir():  # as the message says
        path.replace(old / path.name)
    assert contents(old) == before
    assert state(old, before, new) == "old"


@pytest.mark.parametrize("where", ["vl.checkpoint.save_file", "vl.config.write_file", "os.fsync"])
def test_a_full_disk_leaves_the_old_model(
    old: Path, new: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    before = contents(old)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        with pytest.raises(CheckpointError, match=r"No space left.*check free space and permissions"):
            new.save(old)
    assert contents(old) == before
    assert not list(old.glob(".unfinished*"))


@pytest.mark.parametrize("name", ["file", "file/below", "a\0b", "n" * 5000])
def test_a_place_that_cannot_hold_a_model(tmp_path: Path, new: vl.MiniMaxVL, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=r"no model can be saved|give its path"):
        new.save(tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    for folder in (None, 5, b"model"):
        with pytest.raises(CheckpointError, match="give its path"):
            new.save(folder)  # type: ignore[arg-type]


def test_a_path_that_is_empty_is_not_this_folder(
    tmp_path: Path, new: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="give its path"):
        new.save("")
    assert not list(tmp_path.iterdir())


def test_the_home_of_a_user_is_found(tmp_path: Path, new: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert new.save("~/model") == tmp_path / "model"
    assert (tmp_path / "model" / "config.json").is_file()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_no_rights(old: Path, new: vl.MiniMaxVL) -> None:
    old.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="rights"):
            new.save(old)
    finally:
        old.chmod(0o700)


@pytest.mark.parametrize(
    "options", [{"max_shard_bytes": "5GB"}, {"max_shard_bytes": 0}, {"dtype": "int8"}, {"dtype": 5}]
)
def test_wrong_arguments_change_nothing(old: Path, new: vl.MiniMaxVL, options: dict[str, Any]) -> None:
    before = contents(old)
    with pytest.raises(vl.Error, match=next(iter(options))):
        new.save(old, **options)
    assert contents(old) == before


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), None), (float("inf"), "float32"), (1e5, "float16")])
def test_values_that_would_not_load_are_not_saved(old: Path, value: float, dtype: str | None) -> None:
    model, before = vl.load(old, device="cpu"), contents(old)
    assert model.vision is not None
    with torch.no_grad():
        model.vision.image_newline[3] = value
    with pytest.raises(CheckpointError, match="image_newline has NaN or infinite values"):
        model.save(old, dtype=dtype)
    assert contents(old) == before


def test_a_model_saves_over_itself(old: Path) -> None:
    model = vl.load(old, device="cpu")
    model.save(old, dtype="bfloat16", max_shard_bytes=100_000)
    again = vl.load(old, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_text_model_leaves_no_eyes_behind(old: Path, tiny_text_checkpoint: Path) -> None:
    vl.load(tiny_text_checkpoint, device="cpu").save(old)
    assert not (old / "preprocessor_config.json").exists()
    assert vl.load(old, device="cpu").vision is None


def test_an_error_while_writing_discards_the_draft(old: Path) -> None:
    before = contents(old)

    def interrupted() -> None:
        with replace_model(old) as draft:
            (draft / "config.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(old) == before
    assert not list(old.glob(".unfinished*"))


KILL = """
import os, signal, sys
import vl
folder, number = sys.argv[1], int(sys.argv[2])
model = vl.load(sys.argv[3], device="cpu")
calls, replace = 0, os.replace

def killed(source, target):
    global calls
    calls += 1
    if calls == number:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = killed
model.save(folder)
"""


@pytest.mark.parametrize(("number", "left"), [(1, "old"), (8, "none")])
def test_a_real_kill(old: Path, tmp_path: Path, new: vl.MiniMaxVL, number: int, left: str) -> None:
    new.save(tmp_path / "new")
    before = contents(old)
    command = [sys.executable, "-c", KILL, str(old), str(number), str(tmp_path / "new")]
    done = run(command, cwd=ROOT, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert state(old, before, new) == left
