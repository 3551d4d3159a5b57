from __future__ import annotations

import gc
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forkserver import run

import vl
from vl.training.batch import Batch
from vl.training.config import TrainConfig
from vl.training.curve import read_log
from vl.training.init import sines_2d
from vl.training.state import load_state
from vl.training.train import Trainer, train

from .conftest import losses_of


def test_resumed_losses_equal_uninterrupted_ones(config: TrainConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "whole", device="cpu")
    whole = losses_of(tmp_path / "whole")
    assert sorted(whole) == [1, 2, 3, 4, 5, 6]

    trainer = Trainer(replace(config, run=replace(config.run, save_minutes=0.0)), tmp_path / "parts", "cpu")
    steps = iter((trainer.step, trainer.step, trainer.step))

    def step_until_killed(batch: list[Batch]) -> Any:
        return next(steps)(batch)

    trainer.step = step_until_killed  # type: ignore[method-assign]
    with pytest.raises(StopIteration):
        trainer.run()
    assert load_state(tmp_path / "parts")[0].step == 3
    train(config, tmp_path / "parts", resume=True, device="cpu")
    assert losses_of(tmp_path / "parts") == whole


def test_the_callers_products_are_as_precise_as_before(config: TrainConfig, tmp_path: Path) -> None:
    torch.set_float32_matmul_precision("highest")
    train(replace(config, run=replace(config.run, steps=1)), tmp_path / "run", device="cpu")
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.gpu
def test_weights_start_the_same_on_a_gpu(config: TrainConfig, tmp_path: Path) -> None:
    """As several processes start on the CPU, and one on its GPU. The ViT's head learns only in training."""
    here, there = (Trainer(config, tmp_path / kind, kind).learner.state_dict() for kind in ("cpu", "cuda"))
    assert any(name.startswith("head") for name in here)
    torch.testing.assert_close({name: each.cpu() for name, each in there.items()}, dict(here), rtol=0, atol=0)


def test_the_last_step_is_logged_too(config: TrainConfig, tmp_path: Path) -> None:
    train(replace(config, run=replace(config.run, steps=3)), tmp_path / "each", device="cpu")
    train(replace(config, run=replace(config.run, steps=3, log_steps=2)), tmp_path / "some", device="cpu")
    each, some = losses_of(tmp_path / "each"), losses_of(tmp_path / "some")
    assert some == {2: pytest.approx((each[1] + each[2]) / 2), 3: pytest.approx(each[3])}


def test_the_result_loads_and_answers(config: TrainConfig, tmp_path: Path) -> None:
    folder = train(replace(config, run=replace(config.run, steps=2)), tmp_path, device="cpu")
    model = vl.load(folder, device="cpu", dtype="float32")
    trained = load_state(tmp_path)[1]["model.language_model.embed_tokens.weight/master"]
    torch.testing.assert_close(model.language_model.embed_tokens.weight, trained.bfloat16().float(), rtol=0, atol=0)
    picture = torch.zeros(40, 40, 3, dtype=torch.uint8).numpy()
    assert isinstance(model.caption(picture, max_new_tokens=3), str)
    assert (tmp_path / "loss.png").stat().st_size > 1000
    kinds = {record["kind"] for record in read_log(tmp_path)}
    assert kinds == {"train", "eval"}


def test_workers_end_with_the_run(config: TrainConfig, tmp_path: Path) -> None:
    helped = replace(config, data=replace(config.data, workers=2), run=replace(config.run, steps=2))
    others = set(multiprocessing.active_children())
    gc.collect()
    gc.disable()  # only it would find them when something keeps the loop's frame
    try:
        train(helped, tmp_path, device="cpu")
        for child in set(multiprocessing.active_children()) - others:
            child.join(60)  # one that was slow to end has been told to
        assert set(multiprocessing.active_children()) <= others
    finally:
        gc.enable()


def test_training_learns(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, run=replace(config.run, steps=40, log_steps=10))
    train(config, tmp_path, device="cpu")
    losses = losses_of(tmp_path)
    assert losses[40] < 0.8 * losses[10]


def test_a_part_of_a_run_stops_in_time_and_can_be_resumed(config: TrainConfig, tmp_path: Path) -> None:
    train(config, tmp_path, device="cpu", stop_after=0.0)
    assert load_state(tmp_path)[0].step == 0
    train(config, tmp_path, resume=True, device="cpu")
    assert load_state(tmp_path)[0].step == 6


def test_resuming_nothing_is_a_clear_error(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(vl.CheckpointError, match="without --resume"):
        train(config, tmp_path, resume=True, device="cpu")


def test_the_shipped_recipe_fits_the_repository() -> None:
    path = Path(vl.__file__).parent / "nano" / "nano.toml"
    config = TrainConfig.read(path)
    from vl.model import MiniMaxVL
    from vl.training.build import build_processor

    model = MiniMaxVL(config.model, build_processor(config), device="meta")
    assert 2 * sum(p.numel() for p in model.parameters()) < 23.75 * 2**20
    assert config.model.text.attn_type_list == (0, 0, 0, 0, 0, 0, 0, 1)
    assert len(config.pinpoints) == 28
    assert config.run.minutes is not None
    assert config.run.minutes < 25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optimizer]\nspeed = 1", "unknown key speed"),
        ("[engine]", "unknown table engine"),
        ("[data]\nseed = 4294967296", "for evaluation"),
        ("[text", "cannot read"),
    ],
)
def test_config_errors_name_the_file_and_the_cause(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(vl.ConfigError, match=message) as caught:
        TrainConfig.read(path)
    assert str(path) in str(caught.value)


def test_the_command_reports_errors_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vl.cli", "train", str(tmp_path / "none.toml"), "--out", str(tmp_path)]
    done = run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "none.toml" in done.stderr
    assert "Traceback" not in done.stderr


def test_position_codes_are_distinct_and_local() -> None:
    code = sines_2d(24, 64)
    similarity = code @ code.T
    assert (similarity.argmax(1) == torch.arange(576)).all()
    centre = similarity[12 * 24 + 12].view(24, 24)
    assert centre[12, 13] > centre[12, 16] > centre[12, 20]
    assert centre[13, 12] > centre[16, 12] > centre[20, 12]
