"""Runs whose processes share the work out by several dimensions are the run of one process."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import vl
from text_backbone import TextConfig
from vl.training.config import TrainConfig
from vl.training.dimensions import ParallelConfig
from vl.training.folder import check_folder
from vl.training.parallelize import World
from vl.training.state import load_state
from vl.training.train import Trainer, train

from .conftest import tables
from .test_context import recorded
from .test_parallelize import FIGURES, figures, meet

# Goes on with a run for one step, which is watched and saved.
SCRIPT = """
import json, sys
from pathlib import Path
from vl.training.config import TrainConfig
from vl.training.train import Trainer
tables, out = json.loads(sys.argv[1])
trainer = Trainer(TrainConfig.of(tables), Path(out), "cpu", resume=True)
steps = iter((trainer.step,))
trainer.step = lambda taken: next(steps)(taken)
try:
    trainer.run()
except StopIteration:
    pass
trainer.world.leave()
"""
BATCHES = 4  # to a step
# Processes, and how they share the work.
COMPOSITIONS: list[tuple[int, dict[str, int]]] = [
    (2, {"expert_tensor": 2}),
    (4, {"expert": 2}),
    (4, {"tensor": 2, "expert": 4}),
    (4, {"context": 2, "expert": 2, "expert_tensor": 2, "expert_groups": 2}),
    (4, {"context": 2, "tensor": 2, "expert_tensor": 2}),
]


@pytest.fixture(scope="module")
def began(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, Path]:
    """A recipe of three steps, a run of one process that has done them all, and one that has done the first."""
    folder = tmp_path_factory.mktemp("runs")
    values = recorded(folder, steps=3, save_minutes=0.0, eval_minutes=0.0, accumulate=BATCHES)
    values["text"]["num_key_value_heads"] = 2
    config = TrainConfig.of(values)
    train(config, folder / "one", device="cpu")
    trainer = Trainer(config, folder / "first", "cpu")
    steps = iter((trainer.step,))
    trainer.step = lambda taken: next(steps)(taken)  # type: ignore[method-assign]
    with pytest.raises(StopIteration):
        trainer.run()
    return values, folder / "one", folder / "first"


@pytest.mark.parametrize(("processes", "parallel"), COMPOSITIONS, ids=str)
def test_a_composition_goes_on_and_leaves_what_one_process_does(
    began: Any, tmp_path: Path, processes: int, parallel: dict[str, int]
) -> None:
    """The second step of three is theirs."""
    values, one, first = began
    run = tmp_path / "run"
    shutil.copytree(first, run)
    accumulate = BATCHES * parallel.get("context", 1) * parallel.get("tensor", 1) // processes
    shared = {"accumulate": accumulate, "recompute": len(parallel) > 2}
    script = tmp_path / "go_on.py"
    script.write_text(SCRIPT)
    meet(
        processes,
        [str(script), json.dumps([values | {"parallel": parallel, "run": values["run"] | shared}, str(run)])],
        tmp_path,
    )
    assert load_state(run)[0].step == 2
    train(TrainConfig.of(values), run, device="cpu", resume=True)

    for figure in FIGURES:
        ours, theirs = figures(run, figure), figures(one, figure)
        assert len(ours) == 3
        assert ours == pytest.approx(theirs, rel=1e-4), figure
    for figure in ("records_loss", "records_accuracy", "records_exact"):
        assert figures(run, figure, "eval") == pytest.approx(figures(one, figure, "eval"), rel=1e-4), figure
    (_, want), (_, got) = load_state(one), load_state(run)
    assert got.keys() == want.keys()
    for name in want:
        if "attn.qkv.bias" not in name:  # of the keys: no effect, and no gradient but rounding errors
            torch.testing.assert_close(got[name], want[name], rtol=1e-2, atol=2e-5, msg=name)
    trained = [vl.load(folder / "model", device="cpu", dtype="float32") for folder in (one, run)]
    expected, found = (model.released_tensors() for model in trained)
    assert found.keys() == expected.keys()
    for name, slot in expected.items():
        if "k_proj.bias" not in name:
            torch.testing.assert_close(found[name].read(), slot.read(), rtol=2**-6, atol=2e-5, msg=name)


@pytest.mark.parametrize(
    ("parallel", "cause"),
    [
        ({"expert": 4}, "expert x expert_tensor = 4 x 1 .* over 4 processes, and 6 cannot be divided"),
        ({"expert": 2, "expert_tensor": 2}, "2 x 2 shares .* start a multiple of 4"),
        ({"context": 4, "expert": 3}, "start a multiple of 12 .torchrun --nproc-per-node 12"),
        ({"context": 4}, "parallel.context = 4 shares every batch out over 4 processes"),
        ({"context": 2, "tensor": 2}, "context x tensor = 2 x 2 shares every batch out over 4 processes"),
        ({"tensor": 4}, "parallel.tensor = 4 shares every head's work out over 4 processes"),
        ({"fsdp": 2, "context": 2}, "is for 4 processes, and there are 6: start 4 .*or leave fsdp out"),
    ],
)
def test_processes_that_cannot_lie_so_are_refused(parallel: dict[str, int], cause: str) -> None:
    config = ParallelConfig(**parallel)
    with pytest.raises(vl.ConfigError, match=cause):
        config.check_processes(6)


def test_processes_that_can_lie_so_are_not() -> None:
    ParallelConfig(fsdp=1, context=2, tensor=3, expert=3, expert_tensor=2).check_processes(6)
    ParallelConfig().check_processes(5)


@pytest.mark.parametrize(
    ("parallel", "cause"),
    [
        ({"expert": 3}, r"parallel\.expert = 3 shares out num_local_experts, and the model's 4 cannot"),
        ({"expert_tensor": 5}, r"parallel\.expert_tensor = 5 shares out intermediate_size, and the model's 32 cannot"),
        ({"tensor": 2}, r"parallel\.tensor = 2 shares out num_key_value_heads, and the model's 1 cannot"),
        ({"expert": 2, "expert_groups": 3}, r"expert_groups = 3, and a process has 2 of a layer's 4 experts"),
    ],
)
def test_models_that_cannot_be_shared_so_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: dict[str, int], cause: str
) -> None:
    values = tables() | {"parallel": parallel}
    with pytest.raises(vl.ConfigError, match=cause):
        ParallelConfig(**parallel).check_model(TextConfig(**values["text"]))
    count = math.prod(value for key, value in parallel.items() if key != "expert_groups")
    monkeypatch.setattr(World, "join", lambda device, parallel: World(0, count))
    with pytest.raises(vl.ConfigError, match=cause):
        Trainer(TrainConfig.of(values), tmp_path / "run", "cpu")


def test_keys_are_checked() -> None:
    for key in ("context", "tensor", "expert", "expert_tensor", "expert_groups", "fsdp"):
        with pytest.raises(vl.ConfigError, match=rf"parallel\.{key} = 0 must be at least 1"):
            TrainConfig.of(tables() | {"parallel": {key: 0}})
    with pytest.raises(vl.ConfigError, match="there are none: set expert or expert_tensor above 1"):
        TrainConfig.of(tables() | {"parallel": {"expert_groups": 2}})


def test_adapters_of_cut_matrices_are_refused() -> None:
    values = tables(init="nano") | {"lora": {}, "parallel": {"tensor": 2}}
    with pytest.raises(vl.ConfigError, match=r"parallel\.tensor = 2 cuts them: set it to 1"):
        TrainConfig.of(values)


def test_how_work_is_shared_is_no_part_of_the_recipe(tmp_path: Path) -> None:
    """But how many batches a step has is."""
    values = tables(accumulate=2)
    config = TrainConfig.of(values)
    train(config, tmp_path, device="cpu", stop_after=0.0)
    other = TrainConfig.of(tables(accumulate=1) | {"parallel": {"expert": 2, "fsdp": 2, "expert_groups": 2}})
    check_folder(tmp_path, other, 2, resume=True, overwrite=False)
    with pytest.raises(vl.CheckpointError, match="batches_per_step was 2 and is 1"):
        check_folder(tmp_path, other, 1, resume=True, overwrite=False)
