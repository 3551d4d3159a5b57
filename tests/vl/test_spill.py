"""Models with experts in host memory: asked for, said, refused; and that they answer as all others."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import vl
from text_backbone.spill import SpilledExperts, host_bytes
from vl.cli.app import app
from vl.config import VLConfig
from vl.engine import Engine, EngineConfig, keeping, memory
from vl.plan import Machine, Workload, find_format, find_gpu
from vl.plan.memory import FRAGMENTS, PROCESS
from vl.plan.models import find_config
from vl.plan.planner import consider
from vl.plan.share import spilled
from vl.plan.sizes import expert, expert_bytes, stored
from vl.quantization import FORMATS
from vl.ranks.devices import Placed
from vl.spill import away_of, place_experts, tokens_per_second

PICTURE = np.arange(40 * 50 * 3, dtype=np.uint32).reshape(40, 50, 3).astype(np.uint8)
MESSAGES = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What?"}]}]
FORMAT = pytest.mark.parametrize("form", [None, *FORMATS])
BF16: dict[str, Any] = {"dtype": torch.bfloat16, "engine": EngineConfig()}


@pytest.fixture
def load() -> Callable[..., vl.MiniMaxVL]:
    def spilled(*args: Any, **options: Any) -> vl.MiniMaxVL:
        with pytest.warns(UserWarning, match="experts of every layer are on cpu"):
            return vl.load(*args, device="cpu", **options)

    return spilled


@pytest.fixture(scope="session")
def vl01() -> VLConfig:
    return find_config("MiniMax-VL-01")


def answers(model: vl.MiniMaxVL) -> list[list[int]]:
    asked = [MESSAGES, [{"role": "user", "content": "And you?"}]]
    return [result.token_ids for result in model.generate(asked, max_new_tokens=6)]


@FORMAT
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_it_answers_the_same(
    form: str | None, slots: int, tiny_checkpoint: Path, load: Callable[..., vl.MiniMaxVL]
) -> None:
    """Bit for bit, through loading, reading a prompt and writing."""
    model = load(tiny_checkpoint, quantization=form, spill=slots)
    plain = vl.load(tiny_checkpoint, device="cpu", quantization=form)
    inputs = plain.processor(MESSAGES)
    assert torch.equal(model.logits(inputs), plain.logits(inputs))
    assert answers(model) == answers(plain)
    assert torch.equal(model.logits(inputs), plain.logits(inputs))
    spilled = [module for module in model.modules() if isinstance(module, SpilledExperts)]
    assert [len(module.residents.held) for module in spilled] == [slots] * 8


@FORMAT
def test_saved_and_loaded_again(
    form: str | None, tiny_checkpoint: Path, tmp_path: Path, load: Callable[..., vl.MiniMaxVL]
) -> None:
    load(tiny_checkpoint, quantization=form, spill=2).save(tmp_path)
    again = load(tmp_path, spill=1)
    plain = vl.load(tiny_checkpoint, device="cpu", quantization=form)
    inputs = plain.processor(MESSAGES)
    assert torch.equal(again.logits(inputs), plain.logits(inputs))


@pytest.mark.parametrize("form", [None, "nf4"])
def test_nano_captions_the_same(form: str | None, load: Callable[..., vl.MiniMaxVL]) -> None:
    picture = Path(__file__).parents[2] / "demo" / "examples"
    image = next(iter(sorted(picture.glob("*.png"))))
    plain = vl.load("nano", device="cpu", quantization=form)
    assert load("nano", quantization=form, spill=2).caption(image) == plain.caption(image)


def test_the_warning_says_what_is_where(tiny_checkpoint: Path) -> None:
    with pytest.warns(UserWarning, match=r"1 of 4 experts .* on cpu at a time .* No speed is predicted for cpu"):
        vl.load(tiny_checkpoint, device="cpu", spill=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vl.load(tiny_checkpoint, device="cpu")


@pytest.mark.parametrize(
    ("model", "words"), [("MiniMax-VL-01", r"expect \d\.\d tokens/s"), ("nano", r"\d,\d{3} tokens/s")]
)
def test_the_warning_says_how_fast(model: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that is known, of a host with memory enough."""
    monkeypatch.setattr(vl.spill, "gpu_of", lambda device: find_gpu("H200"))
    monkeypatch.setattr(memory, "free", lambda device: 2**42)
    placed = Placed((torch.device("cuda"),), "tensor")
    found = place_experts(1, find_config(model), placed, name=model, format="nf4", **BF16)
    assert found is not None
    assert re.search(words, found.note)


def test_on_each_of_several_gpus(vl01: VLConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a part of every expert, or whole ones; the plan for so many GPUs says how many fit, and how fast."""
    gpu, gpus = find_gpu("H100-80GB"), tuple(torch.device("cuda", i) for i in range(2))
    monkeypatch.setattr(vl.spill, "gpu_of", lambda device: gpu)
    monkeypatch.setattr(memory, "free", lambda device: 2**42)
    engine = EngineConfig()
    placement = spilled(vl01, 2)
    assert placement is not None
    option = consider(placement, find_format("nf4"), Machine(gpu, 2), Workload.of(engine))
    assert 0 < option.spilled < 1
    for kind, here, each in (("tensor", 32, 104.5), ("expert", 16, 104.5), ("context", 32, 209)):
        found = place_experts("auto", vl01, Placed(gpus, kind), name="m", format="nf4", **BF16)
        assert found is not None
        assert f"of {here} experts of every layer are on each of 2 devices" in found.note
        assert 2 * each == pytest.approx(float(re.search(r"host memory \(([\d.]+) GiB", found.note)[1]), abs=1)  # type: ignore[index]
        if kind != "context":
            assert found.slots == int((1 - option.spilled) * here)
            assert "tokens/s" in found.note
    with pytest.raises(vl.ConfigError, match="not reckoned for this model with placement='layers' on 2"):
        place_experts("auto", vl01, Placed(gpus, "layers"), name="m", format="nf4", **BF16)
    named = place_experts(5, vl01, Placed(gpus, "layers"), name="m", format="nf4", **BF16)
    assert named is not None
    assert "No speed is predicted for placement 'layers'" in named.note
    with pytest.raises(vl.ConfigError, match="spill=16 would leave all 16 experts on the device"):
        place_experts(16, vl01, Placed(gpus, "expert"), name="m", format="nf4", **BF16)
    monkeypatch.setattr(memory, "free", lambda device: 250 * 2**30)  # enough once, and not for each
    assert place_experts(5, vl01, Placed(gpus, "tensor"), name="m", format="nf4", **BF16)
    with pytest.raises(vl.DeviceError, match=r"take 4\d\d\.\d GiB of host memory"):
        place_experts(5, vl01, Placed(gpus, "context"), name="m", format="nf4", **BF16)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spill": 0}, "spill=0 is not known: give the number"),
        ({"spill": True}, "spill=True is not known"),
        ({"spill": "all"}, "spill='all' is not known"),
        ({"spill": 2.5}, "spill=2.5 is not known"),
        ({"spill": np.ones(3)}, "is not known"),
        ({"spill": 4}, "leave all 4 experts on the device: give 1 to 3"),
        (
            {"spill": 2, "devices": "auto"},
            "spill=2 is for a model that does not fit, and devices='auto' chooses of what",
        ),
        ({"spill": 2, "devices": 2, "placement": "auto"}, "say which placement"),
        ({"spill": 4, "devices": 2, "placement": "layers"}, "leave all 4 experts on the device: give 1 to 3"),
        ({"spill": "auto"}, "reckoned for GPUs"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str, tiny_checkpoint: Path) -> None:
    with pytest.raises(vl.ConfigError, match=words):
        vl.load(tiny_checkpoint, device="cpu", **options)


def test_a_host_without_the_memory(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is allocated."""
    monkeypatch.setattr(memory, "free", lambda device: 1000)
    monkeypatch.setattr(vl.loading, "load_folder", None)
    with pytest.raises(vl.DeviceError, match=r"the experts of .* of host memory, and 0\.0 GiB are free"):
        vl.load(tiny_checkpoint, device="cpu", spill=1)


def test_neither_trained_nor_moved(tiny_checkpoint: Path, load: Callable[..., vl.MiniMaxVL]) -> None:
    model = load(tiny_checkpoint, spill=2)
    with pytest.raises(vl.ConfigError, match="load it without spill= to train it"):
        model.train()
    with pytest.raises(vl.ConfigError, match="cannot be moved or cast"):
        model.half()
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.language_model.parameters())
    assert answers(model) == answers(vl.load(tiny_checkpoint, device="cpu"))


def test_no_graph_is_made_of_its_steps(tiny_model: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "GraphRecorder", lambda device: "a recorder")
    monkeypatch.setattr(memory, "check_config", lambda model, config: None)
    for capturable in (True, False):
        backbone = SimpleNamespace(capturable=capturable)
        model: Any = SimpleNamespace(device=torch.device("cuda"), config=tiny_model.config, language_model=backbone)
        assert (Engine(model)._recorder() is not None) is capturable


@pytest.mark.parametrize("form", [None, *FORMATS])
def test_as_many_as_fit(form: str | None, vl01: VLConfig) -> None:
    """One more expert of every layer takes one more slot, until all of them are there."""
    layer = vl01.text.num_hidden_layers * stored(expert(vl01.text), find_format(form or "bf16").experts)
    work = Workload(4096, 16)
    assert away_of(vl01, form, int(1e9), work) is None
    least = next(size for size in range(10, 200) if slots(vl01, form, size * 2**30, work) == 1)
    assert slots(vl01, form, least * 2**30 + int(5.01 * layer / (1 - FRAGMENTS)), work) == 6
    assert away_of(vl01, form, 2 * 2**40 + PROCESS, work) == 0


def slots(config: VLConfig, form: str | None, available: int, work: Workload) -> int:
    away = away_of(config, form, available, work)
    return 0 if away is None else int((1 - away) * config.text.num_local_experts)


@pytest.mark.parametrize("form", [None, *FORMATS])
def test_the_host_takes_what_is_planned(form: str | None, vl01: VLConfig) -> None:
    """Of the released model in NF4 209 GiB, of which PyTorch's own pinned memory would make 248."""
    planned = expert_bytes(vl01.text, find_format(form or "bf16").experts)
    assert host_bytes(vl01.text, form, torch.bfloat16) == pytest.approx(planned, rel=0.001)
    assert form != "nf4" or planned / 2**30 == pytest.approx(209, abs=1)


def test_the_speed_to_expect(vl01: VLConfig) -> None:
    """Of two experts in each of 80 layers, those that are away come through the bus: 5 GB and more a token in NF4."""
    h200, work = find_gpu("H200"), Workload(4096)
    half, none = (tokens_per_second(vl01, "nf4", h200, 1 - here / 32, work) for here in (16, 1))
    away = vl01.text.num_hidden_layers * 2 * stored(expert(vl01.text), find_format("nf4").experts)
    assert 1 / half > 0.5 * away / h200.host_bandwidth
    assert 1 / none - 1 / half == pytest.approx(15 / 32 * away / h200.host_bandwidth)


def test_on_the_command_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    asked = ["chat", "-m", str(tiny_checkpoint), "--device", "cpu", "--json", "--max-new-tokens", "4", "-q", "What?"]
    with pytest.warns(UserWarning, match="1 of 4 experts"):
        spilled = CliRunner().invoke(app, [*asked, "--spill", "1"])
    plain = CliRunner().invoke(app, asked)
    assert spilled.exit_code == plain.exit_code == 0
    assert json.loads(spilled.stdout)["text"] == json.loads(plain.stdout)["text"]


@pytest.mark.gpu
@pytest.mark.parametrize("form", [None, *FORMATS])
def test_on_a_gpu(form: str | None) -> None:
    with pytest.warns(UserWarning, match="experts of every layer are on cuda"):
        model = vl.load("nano", device="cuda", quantization=form, spill=2)
    plain = vl.load("nano", device="cuda", quantization=form)
    inputs = plain.processor(MESSAGES)
    got, want = model.logits(inputs), plain.logits(inputs)
    assert (got - want).norm() <= 0.05 * want.norm()
    assert model.chat(MESSAGES, max_new_tokens=8)
