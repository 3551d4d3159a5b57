from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import meeting
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import vl
from vl.training.config import TrainConfig
from vl.training.curve import read_log
from vl.training.lora import WEIGHTS
from vl.training.parallelize import World, gathered, local_device, together
from vl.training.shards import Shards, local
from vl.training.state import load_state
from vl.training.train import Trainer, train

from .conftest import tables
from .conversations import picture, talk, write_jsonl

SCRIPT = """
import json, sys
from vl.training.config import TrainConfig
from vl.training.train import train
tables, out, resume = json.loads(sys.argv[1])
train(TrainConfig.of(tables), out, resume=resume, device="cpu")
"""
LEFT = """
import os
import torch.distributed as dist
import vl
from vl.training.parallelize import together
dist.init_process_group("gloo")
dist.barrier()
if dist.get_rank():
    os._exit(0)
try:
    with together():
        dist.barrier()
except vl.TrainingError as error:
    assert "another process of this run has ended" in str(error)
else:
    raise AssertionError
os._exit(0)
"""
SLOW = """
import sys, time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout
from vl.training.lengths import Lengths
from vl.training.parallelize import World
from vl.training.train import Trainer
world, out = World.join(torch.device("cpu")), Path(sys.argv[1])
def give(seconds):  # little to what may not wait for the first, much to what all do at once on a busy machine
    _set_pg_timeout(timedelta(seconds=seconds), dist.group.WORLD)
def sum_up():
    give(200)
    assert world.sum(1.0) == 2
    give(0.8)
def write(*arguments):
    if world.first:
        time.sleep(1.4)
def gather_and_write(folder):
    sum_up()
    write()
def measure(*arguments):
    write()
    return Lengths(np.ones(1, np.int32), (), {})
Trainer.save.__globals__.update(save_state=write, measure_records=measure)
trainer = SimpleNamespace(
    world=world,
    out=out,
    progress=SimpleNamespace(skipped=0),
    optimizer=SimpleNamespace(state=lambda keep: {}),
    learner=SimpleNamespace(adapters=None),
    report=SimpleNamespace(tell=print),
    model=SimpleNamespace(processor=None),
    config=SimpleNamespace(data=None),
    _check_finite=lambda: None,
    _save_model=gather_and_write,
)
give(0.8)
Trainer.save(trainer)
sum_up()
Trainer._measure(trainer, (str(out / "talks.jsonl"),), "train")
sum_up()
world.leave()
"""
FIGURES = ("loss", "grad_norm", "dense", "balance", "expert_max", "samples")


def processes(count: int, values: dict[str, Any], out: Path, *, resume: bool = False, launcher: bool = False) -> None:
    """A run over so many processes. `launcher`: started by `torchrun`, and not as it starts them."""
    script = out.parent / "run.py"
    script.write_text(SCRIPT)
    start = launch if launcher else meet
    start(count, [str(script), json.dumps([values, str(out), resume])], out.parent)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(vl.__file__).parents[1])}


def launch(count: int, command: list[str], folder: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    done = subprocess.run(
        [*launcher, *command], capture_output=True, text=True, check=False, env=environment(), timeout=280
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def meet(count: int, command: list[str], folder: Path) -> None:
    """Processes with the variables by which `torchrun` has them meet."""
    meeting.meet(count, command, environment(), folder, timeout=280)


def figures(out: Path, name: str, kind: str = "train") -> list[float]:
    return [record[name] for record in read_log(out) if record["kind"] == kind]


# One process with two batches to a step has the batches, and so the losses, of two processes with one each.


def test_two_processes_continue_what_one_began(tmp_path: Path) -> None:
    """Rendered pictures, layers recomputed, a checkpoint of one process resumed by two."""
    config = TrainConfig.of(tables(accumulate=2))
    train(config, tmp_path / "one", device="cpu")
    run = tmp_path / "two"
    trainer = Trainer(replace(config, run=replace(config.run, save_minutes=0.0)), run, "cpu")
    steps = iter((trainer.step, trainer.step))
    trainer.step = lambda taken: next(steps)(taken)  # type: ignore[method-assign]
    with pytest.raises(StopIteration):
        trainer.run()
    processes(2, tables(recompute=True), run, resume=True, launcher=True)

    assert len(figures(run, "loss")) == 6
    for name in FIGURES:
        assert figures(run, name) == pytest.approx(figures(tmp_path / "one", name), rel=1e-4), name
    for name in ("scenes_loss", "words_loss"):
        assert figures(run, name, "eval") == pytest.approx(figures(tmp_path / "one", name, "eval"), rel=1e-4)
    (_, expected), (_, found) = load_state(tmp_path / "one"), load_state(run)
    assert found.keys() == expected.keys()
    for name in expected:
        # The bias of the keys has no effect and no gradient but rounding errors, which AdamW scales up.
        if "attn.qkv.bias" not in name:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-2, atol=2e-5)
    saved = vl.load(run / "model", device="cpu", dtype="float32").released_tensors()
    for name, slot in vl.load(tmp_path / "one" / "model", device="cpu", dtype="float32").released_tensors().items():
        if "k_proj.bias" not in name:
            torch.testing.assert_close(saved[name].read(), slot.read(), rtol=2**-6, atol=2e-5)


def test_two_processes_learn_from_records(tmp_path: Path) -> None:
    """Everything, then adapters; one process may have no picture in its batch while the other has several."""
    base = train(TrainConfig.of(tables(steps=1)), tmp_path / "base", device="cpu")
    (tmp_path / "a.png").write_bytes(picture(90, 30))
    hello = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    path = write_jsonl(tmp_path / "talks.jsonl", [talk("a.png"), hello, hello, hello] * 3)
    data = {"files": [str(path)], "batch_tokens": 250, "workers": 0}
    all_of_it = tables(steps=5, init=str(base)) | {"data": data}
    adapters = all_of_it | {"lora": {"rank": 2}}
    for values, name in ((all_of_it, "one"), (adapters, "one-lora")):
        processes(2, values, tmp_path / name.replace("one", "two"))
        values["run"] = {**values["run"], "accumulate": 2}
        train(TrainConfig.of(values), tmp_path / name, device="cpu")
        other = tmp_path / name.replace("one", "two")
        for figure in FIGURES:
            assert figures(other, figure) == pytest.approx(figures(tmp_path / name, figure), rel=1e-4), figure
        assert (other / "model" / "config.json").exists()
    ours, theirs = (load_file(tmp_path / run / "adapter" / WEIGHTS) for run in ("one-lora", "two-lora"))
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-6)


def test_alone_nothing_is_sharded() -> None:
    world = World.join(torch.device("cpu"))
    assert (world.rank, world.size, world.first) == (0, 1, True)
    assert world.sum(3.0) == world.slowest(3.0) == 3.0
    tensor = torch.randn(5, 3)
    shards = Shards()
    assert local(tensor) is shards.gather("a", tensor, tensor) is shards.shard("a", tensor, tensor) is tensor
    assert world.mean(tensor) is tensor


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, second = torch.device("cuda"), torch.device("cuda", 1)
    assert [local_device(device) for device in (cuda, second)] == [cuda, second]
    for name, value in {"LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_device(cuda) == second
    assert local_device(torch.device("cpu")).type == "cpu"
    with pytest.raises(vl.DeviceError, match="'cuda:1' is one GPU, and torchrun started 2 processes"):
        local_device(second)
    with pytest.raises(vl.DeviceError, match="'mps' cannot talk to each other"):
        local_device(torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(vl.DeviceError, match=r"has 1 GPU, .*: start 1 \(torchrun"):
        local_device(cuda)
    monkeypatch.setenv("LOCAL_RANK", "0")  # of a host with one process
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert local_device(second) == second


@pytest.fixture
def alone() -> Iterator[DeviceMesh]:
    """A mesh of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_what_is_gathered_for_a_step_can_be_called_by_itself(alone: DeviceMesh) -> None:
    """As when the ViT's blocks are compiled."""
    root = nn.Sequential(nn.LayerNorm(4))
    with gathered(root):
        assert root(torch.ones(4)).shape == (4,)
    fully_shard(root, mesh=alone)
    with gathered(root):
        assert not isinstance(root[0](torch.ones(4)), DTensor)
    assert isinstance(root[0].weight, DTensor)


@pytest.mark.parametrize("kind", ["words", "nothing"])
def test_all_that_learns_has_a_gradient_of_any_batch(alone: DeviceMesh, tmp_path: Path, kind: str) -> None:
    """Or processes would not reduce the same ones: of pictures, and of text alone beside dense supervision."""
    values = tables()
    values["data"]["mix"] = {"scenes": 0, kind: 1, "absent": 1.0, "sizes": [[48, 64, 1.0]], "max_words": 1}
    trainer = Trainer(TrainConfig.of(values), tmp_path, "cpu")
    learner, batch = trainer.learner, trainer.held_out[kind][0]
    assert learner.head is not None
    assert bool(batch.grids) == (kind == "words")
    fully_shard(learner, mesh=alone)
    learner(batch, balance=0.0, dense=1.0, max_tiles=8).total.backward()
    assert [name for name, p in learner.named_parameters() if p.grad is None] == []


def test_what_the_first_does_alone_is_waited_for(tmp_path: Path) -> None:
    """A checkpoint and a model that it writes, and records that it measures, for longer than messages may take."""
    (tmp_path / "slow.py").write_text(SLOW)
    write_jsonl(tmp_path / "talks.jsonl", [talk("a.png")])
    meet(2, [str(tmp_path / "slow.py"), str(tmp_path)], tmp_path)


def test_muon_refuses_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = tables(steps=1)
    values["optimizer"] = {"muon": True}
    two = World(rank=0, size=2)
    monkeypatch.setattr(World, "join", lambda device, parallel: two)
    with pytest.raises(vl.ConfigError, match="whole matrices"):
        Trainer(TrainConfig.of(values), tmp_path, "cpu")


def test_a_process_that_is_left_alone_says_so(tmp_path: Path) -> None:
    (tmp_path / "left.py").write_text(LEFT)
    meet(2, [str(tmp_path / "left.py")], tmp_path)
    with pytest.raises(RuntimeError, match="another matter"), together():
        raise RuntimeError("another matter")
