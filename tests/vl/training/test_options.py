"""What a run may start from, learn, and save memory with."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from forkserver import run

import vl
from vl.nano.kinds import KINDS
from vl.training.config import PARTS, DataConfig, LoRAConfig, TrainConfig, find_recipes
from vl.training.curve import read_log
from vl.training.state import load_state
from vl.training.train import Trainer, train

from .conftest import losses_of, tables
from .conversations import picture, talk, write_jsonl


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three steps."""
    out = tmp_path_factory.mktemp("start")
    return train(TrainConfig.of(tables(steps=3)), out, device="cpu")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A dozen pictures to talk about, one text, and one that is cut behind its header."""
    records = []
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(picture(20 + 9 * i, 95 - 7 * i))
        records.append(talk(f"{i}.png", f"Box {i}."))
    (tmp_path / "cut.png").write_bytes(picture(64, 64)[:-40])
    records.append({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]})
    return write_jsonl(tmp_path / "talks.jsonl", [*records, talk("cut.png"), "{broken"])


def recipe(start: Path, data: Path, *, lora: LoRAConfig | None = None, **run: Any) -> TrainConfig:
    values = tables(steps=4) | {"text": None, "vision": None}
    config = TrainConfig.of({name: table for name, table in values.items() if table})
    return replace(
        config,
        data=replace(config.data, files=(str(data),), batch_tokens=300),
        run=replace(config.run, init=str(start), **run),
        lora=lora,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    slots = vl.load(folder, device="cpu", dtype="float32").released_tensors()
    return {name: slot.read() for name, slot in slots.items()}


GROUPS: dict[str, Callable[[str], bool]] = {
    "projector": lambda name: name.startswith(("multi_modal_projector.", "image_newline")),
    "vision": lambda name: name.startswith("vision_tower."),
    "text": lambda name: name.startswith("language_model."),
    "language_model.layers.3.self_attn.*": lambda name: ".layers.3.self_attn." in name,
}


@pytest.mark.parametrize("learnt", [("projector",), ("projector", "vision"), (list(GROUPS)[-1],), PARTS])
def test_what_is_frozen_stays_and_the_rest_moves(
    start: Path, data: Path, tmp_path: Path, learnt: tuple[str, ...]
) -> None:
    trainer = Trainer(recipe(start, data, train=learnt), tmp_path / "run", "cpu")
    frozen = [p for p in trainer.model.parameters() if not p.requires_grad]
    assert len(trainer.optimizer.masters) + len(frozen) == len(list(trainer.model.parameters()))
    trainer.run()
    assert all(p.grad is None for p in frozen)
    saved = load_state(tmp_path / "run")[1]
    assert len({name.rpartition("/")[0] for name in saved}) == len(trainer.optimizer.masters)
    before, after = weights(start), weights(tmp_path / "run" / "model")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        moves = any(GROUPS[part](name) for part in learnt)
        assert moves or torch.equal(tensor, after[name]), name
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert all(any(GROUPS[part](name) for name in moved) for part in learnt)


def test_resuming_a_run_on_records_is_exact(start: Path, data: Path, tmp_path: Path) -> None:
    config = recipe(start, data, train=("projector", "vision"), accumulate=2)
    train(config, tmp_path / "whole", device="cpu")
    whole = losses_of(tmp_path / "whole")
    assert sorted(whole) == [1, 2, 3, 4]
    trainer = Trainer(replace(config, run=replace(config.run, save_minutes=0.0)), tmp_path / "parts", "cpu")
    steps = iter((trainer.step, trainer.step))
    trainer.step = lambda taken: next(steps)(taken)  # type: ignore[method-assign]
    with pytest.raises(StopIteration):
        trainer.run()
    train(replace(config, data=replace(config.data, workers=2)), tmp_path / "parts", resume=True, device="cpu")
    assert losses_of(tmp_path / "parts") == whole
    assert weights(tmp_path / "parts" / "model").keys() == weights(start).keys()


def test_an_epoch_is_every_record_once(start: Path, data: Path, tmp_path: Path) -> None:
    config = recipe(start, data, steps=1000, epochs=1)
    watched = shutil.copy(data, data.with_name("held-out.jsonl"))
    config = replace(config, data=replace(config.data, held_out=(str(watched),)))
    train(config, tmp_path / "run", device="cpu")
    log = read_log(tmp_path / "run")
    last = [record for record in log if record["kind"] == "train"][-1]
    assert last["samples"] >= 13
    assert last["samples"] <= 13 + 3, "only the batch of a record that cannot be read is filled up with others"
    assert last["skipped"] == 2
    assert last["lr"] == pytest.approx(config.optimizer.final_lr, rel=0.2)
    assert {"records_loss", "records_accuracy", "records_exact"} <= log[-1].keys()
    causes = (tmp_path / "run" / "data" / "train" / "skipped.jsonl").read_text("utf-8")
    assert "not JSON" in causes
    later = (tmp_path / "run" / "skipped.jsonl").read_text("utf-8")
    assert "cut.png" in json.loads(later.splitlines()[0])["cause"]


def gradients(config: TrainConfig, out: Path, steps: int = 1) -> list[torch.Tensor]:
    trainer = Trainer(config, out, "cpu")
    kept: list[torch.Tensor] = []

    def stop(lr: float) -> torch.Tensor:
        kept.extend(p.grad.clone() for p in trainer.optimizer.params if p.grad is not None)
        return torch.zeros(())

    trainer.optimizer.step = stop  # type: ignore[method-assign]
    taken = [trainer.source[number, 2] for number in range(config.run.accumulate)]
    trainer.step(taken)
    return kept


def test_recomputing_gives_the_same_gradients(config: TrainConfig, tmp_path: Path) -> None:
    plain = gradients(config, tmp_path)
    recomputed = gradients(replace(config, run=replace(config.run, recompute=True)), tmp_path)
    assert len(plain) > 20
    torch.testing.assert_close(recomputed, plain, rtol=0, atol=0)


def test_recomputing_keeps_less(config: TrainConfig, tmp_path: Path) -> None:
    """Bytes that autograd saves for the backward pass."""

    def kept(recompute: bool) -> int:
        trainer = Trainer(replace(config, run=replace(config.run, recompute=recompute)), tmp_path, "cpu")
        total = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        batch = trainer.source[0, 2]
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            trainer.learner(batch, balance=0.01, dense=1.0, max_tiles=512)
        return total

    assert kept(True) < 0.6 * kept(False)


def test_accumulated_batches_are_one_large_batch(start: Path, data: Path, tmp_path: Path) -> None:
    """All records in one batch against the same in several: the mean is over tokens, not over batches."""
    whole = [line for line in data.read_text("utf-8").splitlines() if "cut.png" not in line]
    data.write_text("\n".join(whole))
    config = recipe(start, data)
    config = replace(config, optimizer=replace(config.optimizer, balance=0.0))
    count = Trainer(config, tmp_path, "cpu").source.plan.end(0)  # type: ignore[attr-defined]
    assert count > 3
    many = gradients(replace(config, run=replace(config.run, accumulate=count)), tmp_path)
    one = gradients(replace(config, data=replace(config.data, batch_tokens=10_000)), tmp_path)
    torch.testing.assert_close(many, one, rtol=1e-4, atol=1e-6)


def test_a_shape_that_is_not_the_checkpoints_is_refused(start: Path, data: Path, tmp_path: Path) -> None:
    fits = TrainConfig.of(tables())
    same = replace(recipe(start, data), text=fits.text, vision=fits.vision)
    Trainer(same, tmp_path, "cpu")
    assert fits.text is not None
    other = replace(same, text=replace(fits.text, rope_theta=1e4))
    with pytest.raises(vl.ConfigError, match=r"not of the shape in \[text\]"):
        Trainer(other, tmp_path, "cpu")


def test_a_quantised_checkpoint_is_no_start(start: Path, data: Path, tmp_path: Path) -> None:
    small = vl.load(start, device="cpu", quantization="int8").save(tmp_path / "int8")
    config = recipe(start, data)
    with pytest.raises(vl.ConfigError, match=r"quantised to int8.*start from the one that it was made of"):
        Trainer(replace(config, run=replace(config.run, init=str(small))), tmp_path, "cpu")


def test_a_run_is_resumed_by_its_own_recipe(start: Path, data: Path, tmp_path: Path) -> None:
    train(recipe(start, data, train=("projector",), steps=1), tmp_path, device="cpu")
    other = recipe(start, data, train=("projector", "text"), steps=1)
    with pytest.raises(vl.CheckpointError, match=r"run\.train was \['projector'\]"):
        train(other, tmp_path, device="cpu", resume=True)
    (tmp_path / "run.json").unlink()
    with pytest.raises(vl.CheckpointError, match="other parts of it"):
        train(other, tmp_path, device="cpu", resume=True)


def test_rendered_pictures_can_follow_a_checkpoint(start: Path, tmp_path: Path) -> None:
    """As `nano` is trained on from its last weights: dense supervision included, the optimizer fresh."""
    config = TrainConfig.of(tables(steps=2, init=str(start), eval_samples=0))
    train(config, tmp_path, device="cpu")
    assert {record["kind"] for record in read_log(tmp_path)} == {"train"}  # nothing was held out
    assert any(name.startswith("head.") for name in load_state(tmp_path)[1])
    assert sorted(losses_of(tmp_path)) == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": {"train": ["projektor"]}}, "no parameter is called 'projektor'"),
        ({"run": {"train": "text"}}, "must be a list"),
        ({"run": {"epochs": 2}}, "counts passes over data.files"),
        ({"run": {"accumulate": 0}}, "at least 1"),
        ({"data": {"files": "a.jsonl"}}, "must be a list"),
        ({"optimizer": {"schedule": "linear"}}, "'cosine' or 'wsd'"),
        ({"optimizer": {"lr": 10**400}}, "optimizer.lr = an integer of more than 63 bits must be a number"),
        ({"run": {"steps": 10**5000}}, "run.steps = an integer of more than 63 bits must be a whole number"),
        ({"text": {"num_key_value_heads": 0}}, "num_key_value_heads = 0 must be above 0"),
        ({"vision": {"patch_size": 0}}, "patch_size = 0 must be above 0"),
        ({"lora": {"rank": 0}, "run": {"init": "x"}}, "lora.rank = 0"),
        ({"lora": {"alpha": 0.0}, "run": {"init": "x"}}, "lora.alpha = 0.0 must be above 0"),
        ({"text": {"layers": 4}}, "keep one of them"),
        ({"data": {"held_out": ["a.jsonl"]}}, "data.held_out is for records of data.files"),
        ({"data": {"max_tokens": 99}}, "data.max_tokens is for records of data.files"),
        ({"lora": {"targets": ["gate"]}, "run": {"init": "x"}}, "lora.targets"),
        ({"lora": {}}, "adapts a checkpoint"),
        ({"lora": {}, "run": {"init": "x", "train": ["text"]}}, "drop run.train"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    values = tables()
    for table, keys in changes.items():
        values[table] = {**values.get(table, {}), **keys}
    with pytest.raises(vl.ConfigError, match=message):
        Trainer(TrainConfig.of(values), tmp_path, "cpu")


@pytest.mark.parametrize(
    "contents",
    [b"\xff\xfe", b"a = " + b"[" * 50_000, b"a = " + b"9" * 5000, b"run = 5", b'[optimizer]\nlr = "a"'],
    ids=["encoding", "nested", "digits", "no table", "a text"],
)
def test_a_recipe_that_cannot_be_read(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(contents)
    with pytest.raises(vl.ConfigError, match=r"recipe\.toml"):
        TrainConfig.of_file(path, {"run": {"steps": 1}})


@pytest.mark.parametrize("table", ["text", "vision", "data", "optimizer", "run", "lora", "parallel"])
@pytest.mark.parametrize("value", [1, "x", [{}], [], True])
def test_what_is_no_table_is_named(table: str, value: Any) -> None:
    with pytest.raises(vl.ConfigError, match=rf"{table} must be a table .*write \[{table}\]"):
        TrainConfig.of(tables() | {table: value})


def test_what_is_held_out_is_not_learnt_from(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"caption": "A"}\n')
    data = DataConfig(files=(str(tmp_path / "*.jsonl"),), held_out=(str(tmp_path / "run" / ".." / "b.jsonl"),))
    (tmp_path / "run").mkdir()
    with pytest.raises(vl.ConfigError, match=r"b\.jsonl is in data\.files and in data\.held_out"):
        Trainer(TrainConfig(data=data), tmp_path / "run", "cpu")


def test_presets_are_found_by_name() -> None:
    assert {
        "align",
        "tune",
        "lora",
        "nano",
        "reading",
        "skills",
        "answers",
        "look",
        "things",
        "tiny",
    } <= find_recipes().keys()
    align, tune, lora = (
        TrainConfig.of_file(name, {"run": {"init": "x"}, "data": {"files": ["a"]}})
        for name in ("align", "tune", "lora")
    )
    assert align.run.train == ("projector",)
    for recipe, thinks in (("answers", False), ("look", True)):
        source: Any = TrainConfig.read(recipe).data.open_source()
        assert set(source.kinds) == set(KINDS) - {"things"}, "whose pictures a folder of them is needed for"
        assert source.reasons == thinks
    things: Any = TrainConfig.read("things").data.open_source()
    assert set(things.kinds) == set(KINDS)
    assert set(tune.run.train) == set(PARTS)
    assert lora.lora is not None
    assert all(config.run.init == "x" and config.data.files == ("a",) for config in (align, tune, lora))


def test_the_command_trains_a_preset_on_the_users_data(start: Path, data: Path, tmp_path: Path) -> None:
    options = ["--init", str(start), "--data", str(data), "--out", str(tmp_path / "run"), "--device", "cpu"]
    command = [sys.executable, "-m", "vl.cli", "train", "align", *options]
    done = run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 for messages" in done.stdout
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_a_preset_alone_says_what_is_missing(tmp_path: Path) -> None:
    changes = {"run": {"steps": 1, "epochs": None}, "data": {"max_tokens": None}}
    with pytest.raises(vl.ConfigError, match=r"--init"):
        Trainer(TrainConfig.of_file("align", changes), tmp_path, "cpu")
    with pytest.raises(vl.ConfigError, match=r"--data"):
        TrainConfig.read("align")


def test_tuning_adapters_on_ones_own_data_imports_no_renderer(start: Path, data: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from vl.cli.app import run\n"
        "start, data, out = sys.argv[1:]\n"
        "args = ['train', 'lora', '--init', start, '--data', data, '--out', out, '--device', 'cpu']\n"
        "assert run(args) == 0\n"
        "renderers = ('matplotlib', 'fontTools', 'vl.nano.pictures', 'vl.nano.render')\n"
        "print(*(name for name in sys.modules if name.startswith(renderers)))"
    )
    command = [sys.executable, "-c", code, str(start), str(data), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=Path(vl.__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    assert (tmp_path / "run" / "loss.png").exists() == (find_spec("matplotlib") is not None)
    assert done.stdout.splitlines()[-1] == "", "none of these modules"
