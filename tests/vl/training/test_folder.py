"""Whose folder a run may take, what a resumed run is held to, and what ends one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vl
from vl.training.batch import Batch
from vl.training.config import DataConfig, TrainConfig
from vl.training.folder import begin_run, check_folder
from vl.training.state import Progress, load_state, save_state
from vl.training.train import Trainer, train

from .conftest import losses_of


def test_a_folder_that_holds_a_run_is_refused_or_overwritten(config: TrainConfig, tmp_path: Path) -> None:
    long = replace(config, run=replace(config.run, steps=6))
    train(long, tmp_path, device="cpu")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    short = replace(config, run=replace(config.run, steps=2))
    with pytest.raises(vl.ConfigError, match=r"holds a run already.*--overwrite"):
        train(short, tmp_path, device="cpu")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "notes.txt").write_text("mine")
    train(short, tmp_path, device="cpu", overwrite=True)
    assert load_state(tmp_path)[0].step == 2
    assert sorted(losses_of(tmp_path)) == [1, 2]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_no_run_has_written_stays(config: TrainConfig, tmp_path: Path) -> None:
    talks = tmp_path / "data" / "talks.jsonl"
    talks.parent.mkdir()
    talks.write_text('{"caption": "A"}\n')
    recipe = replace(config, data=replace(config.data, files=(str(talks),), mix={}))
    for overwrite in (False, True):
        with pytest.raises(vl.ConfigError, match=r"holds data, and no run that wrote it .*choose another folder"):
            train(recipe, tmp_path, device="cpu", overwrite=overwrite)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(vl.ConfigError, match=r"the run needs .*talks.jsonl, and would begin by deleting it"):
        train(recipe, tmp_path, device="cpu", overwrite=True)
    assert talks.exists()


def test_a_folder_is_one_process_s(config: TrainConfig, tmp_path: Path) -> None:
    begin_run(tmp_path, config)
    (tmp_path / "log.jsonl").write_text("theirs\n")
    hold = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        assert other.stdout.readline()
        for how in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(vl.ConfigError, match="another process is writing a run"):
                train(config, tmp_path, device="cpu", **how)
        other.communicate(b"\n")
    assert (tmp_path / "log.jsonl").read_text() == "theirs\n"
    train(config, tmp_path, device="cpu", overwrite=True, stop_after=0.0)


def test_a_run_that_ended_before_its_first_checkpoint_is_resumed(config: TrainConfig, tmp_path: Path) -> None:
    begin_run(tmp_path, config)
    (tmp_path / "log.jsonl").write_text('{"kind": "train", "step": 1, "loss": 9.0}\n')
    (tmp_path / "checkpoints" / "step-00000001.partial").mkdir(parents=True)
    short = replace(config, run=replace(config.run, steps=2))
    with pytest.raises(vl.CheckpointError, match=r"run\.steps was 6 and is 2"):
        train(short, tmp_path, device="cpu", resume=True)
    train(config, tmp_path, device="cpu", resume=True)
    assert sorted(losses_of(tmp_path)) == [1, 2, 3, 4, 5, 6]
    assert losses_of(tmp_path)[1] != 9.0
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(vl.CheckpointError, match="nothing to resume"):  # and no model is lost
        train(config, tmp_path, device="cpu", resume=True)
    assert (tmp_path / "model").exists()


def test_a_checkpoint_stays_whole_while_it_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"a": torch.arange(3.0)}
    save_state(tmp_path, Progress(step=3, seconds=1.0), tensors)

    def killed(*paths: Any) -> None:
        raise SystemExit

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(SystemExit):
        save_state(tmp_path, Progress(step=3, seconds=2.0), tensors)
    monkeypatch.undo()
    progress, found = load_state(tmp_path)
    assert progress.step == 3
    assert torch.equal(found["a"], tensors["a"])
    save_state(tmp_path, Progress(step=3, seconds=2.0), tensors)
    assert load_state(tmp_path)[0].seconds == 2.0


@pytest.mark.parametrize("table", ["data", "optimizer", "run"])
def test_a_resumed_run_is_held_to_its_recipe(config: TrainConfig, tmp_path: Path, table: str) -> None:
    train(config, tmp_path, device="cpu", stop_after=0.0)
    changes: dict[str, dict[str, Any]] = {"data": {"seed": 5}, "optimizer": {"lr": 1e-4}, "run": {"steps": 7}}
    other = replace(config, **{table: replace(getattr(config, table), **changes[table])})
    with pytest.raises(vl.CheckpointError, match=rf"{table}\.{next(iter(changes[table]))} was .* and is"):
        train(other, tmp_path, device="cpu", resume=True)
    watched = replace(config, run=replace(config.run, log_steps=3), data=replace(config.data, workers=0))
    train(watched, tmp_path, device="cpu", resume=True)
    assert load_state(tmp_path)[0].step == 6


def test_data_that_changed_is_not_resumed(config: TrainConfig, tmp_path: Path) -> None:
    data = tmp_path / "talks.jsonl"
    line = {"messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B"}]}
    data.write_text(json.dumps(line) + "\n")
    recipe = replace(config, data=replace(config.data, files=(str(data),), mix={}))
    begin_run(tmp_path / "run", recipe)
    check_folder(tmp_path / "run", recipe, resume=True, overwrite=False)
    data.write_text(2 * (json.dumps(line) + "\n"))
    with pytest.raises(vl.CheckpointError, match="other data: bytes"):
        check_folder(tmp_path / "run", recipe, resume=True, overwrite=False)


def test_a_loss_that_is_not_finite_ends_the_run(config: TrainConfig, tmp_path: Path) -> None:
    trainer = Trainer(replace(config, run=replace(config.run, save_minutes=0.0, log_steps=100)), tmp_path, "cpu")
    step, taken = trainer.step, iter(range(6))

    def breaks(batches: list[Batch]) -> Any:
        losses, norm = step(batches)
        return losses, norm * float("nan") if next(taken) == 2 else norm

    trainer.step = breaks  # type: ignore[method-assign]
    with pytest.raises(vl.TrainingError, match=r"not finite at or before step 3.*optimizer.lr"):
        trainer.run()
    assert load_state(tmp_path)[0].step == 2
    assert vl.load(tmp_path / "model", device="cpu").caption(torch.zeros(9, 9, dtype=torch.uint8).numpy()) is not None


def test_a_damaged_checkpoint_is_named(config: TrainConfig, tmp_path: Path) -> None:
    train(config, tmp_path, device="cpu", stop_after=0.0)
    state = next(tmp_path.glob("checkpoints/*/state.safetensors"))
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(vl.CheckpointError, match="the checkpoint is damaged"):
        train(config, tmp_path, device="cpu", resume=True)


def test_a_run_is_no_file(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(vl.ConfigError, match="a file is there"):
            train(config, out, device="cpu")


WRONG = {
    "lr": ({"optimizer": {"lr": "a"}}, r"optimizer\.lr = 'a' must be a number"),
    "rate": ({"optimizer": {"lr": -1.0}}, r"optimizer\.lr = -1\.0 must be above 0"),
    "nan": ({"optimizer": {"lr": float("nan")}}, r"optimizer\.lr = nan must be a number"),
    "large": ({"optimizer": {"clip": 1e300}}, r"optimizer\.clip = 1e\+300 must be a number"),
    "larger": (
        {"optimizer": {"balance": 2**70}},
        r"optimizer\.balance = an integer of more than 63 bits must be a num",
    ),
    "rising": ({"optimizer": {"lr": 1e-5}}, r"optimizer\.final_lr = 3e-05 is above lr = 1e-05, from which .* or less"),
    "kind": ({"data": {"mix": {"words": "x"}}}, r"data\.mix\.words = 'x' must be a number"),
    "turns": ({"data": {"mix": {"turns": 0}}}, r"data\.mix\.turns = 0 must be at least 1"),
    "objects": ({"data": {"mix": {"max_objects": 7}}}, r"data\.mix\.max_objects = 7 must be at most 6"),
    "shapes": ({"data": {"mix": {"shapes": ["blob"]}}}, r"data\.mix\.shapes must be a list of some of circle,"),
    "odd": ({"data": {"mix": {"odd": 2}}}, r"data\.mix\.odd = 2 must be between 0 and 1"),
    "canvas": ({"data": {"mix": {"sizes": 64}}}, r"data\.mix\.sizes = 64 must be a list of \[shortest, longest, share"),
    "canvases": ({"data": {"mix": {"sizes": [[64, "x", 1.0]]}}}, r"data\.mix\.sizes\.high = 'x' must be a whole numb"),
    "sides": ({"data": {"mix": {"sizes": [[96, 64, 1.0]]}}}, r"data\.mix\.sizes has \[96, 64, 1\], and a canvas has"),
    "no canvas": ({"data": {"mix": {"page_sizes": []}}}, r"data\.mix\.page_sizes needs at least one canvas"),
    "source": (
        {"data": {"source": "os:path", "mix": {"a": 1}}},
        r"data\.source = 'os:path' is a module, and no functio",
    ),
    "betas": ({"optimizer": {"betas": [0.9]}}, r"optimizer\.betas = \[0\.9\] must be a list of 2"),
    "workers": ({"data": {"workers": -3}}, r"data\.workers = -3 must be at least 0"),
    "flag": ({"run": {"compile": 1}}, r"run\.compile = 1 must be true or false"),
    "steps": ({"run": {"steps": True}}, r"run\.steps = True must be a whole number"),
    "width": ({"text": {"hidden_size": -4}}, r"text\.hidden_size = -4 must be above 0"),
    "share": ({"data": {"easy_share": 1.5}}, r"data\.easy_share = 1\.5 must be between 0 and 1"),
    "files": ({"data": {"files": [3]}}, r"data\.files = \[3\] must be a list, each a text"),
    "mix": (
        {"data": {"files": ["a.jsonl"], "mix": {"words": 1.0}}, "run": {"init": "nano"}},
        r"data\.mix makes no difference beside data\.files",
    ),
    "curriculum": ({"data": {"files": ["a.jsonl"], "small_share": 0.5}}, r"data\.small_share makes no difference"),
    "dense": ({"data": {"files": ["a.jsonl"]}, "optimizer": {"dense": 1.0}}, r"optimizer\.dense makes no difference"),
    "decay": ({"optimizer": {"decay_share": 0.1}}, r'optimizer\.decay_share makes no difference without schedule = "w'),
}


@pytest.mark.parametrize(("tables", "message"), WRONG.values(), ids=WRONG)
def test_wrong_values_are_named_by_their_keys(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(vl.ConfigError, match=message):
        TrainConfig.of(tables)


def test_files_that_are_named_beside_a_recipe_take_its_sources_place(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    shares = "easy_share = 0.5\nsmall_share = 0.5\nreuse = 2"
    recipe.write_text(f'[data]\nsource = "nano"\n{shares}\n[data.mix]\nwords = 1.0\n')
    config = TrainConfig.of_file(recipe, {"data": {"files": ["a.jsonl"]}, "run": {"init": "nano"}})
    assert config.data == DataConfig(files=("a.jsonl",))


def test_a_device_that_is_not_there(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(vl.DeviceError, match="cannot be used here"):
        train(config, tmp_path / "run", device="cuda:97")
    assert not (tmp_path / "run").exists()
