"""What `devices=` and `placement=` may be; no process is started here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import vl
from vl.config import VLConfig, read_config
from vl.engine import EngineConfig
from vl.hub import NANO
from vl.plan.gpus import GIB
from vl.plan.models import released
from vl.ranks.devices import Asked, read_devices, read_timeout

ENGINE = EngineConfig()


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with four H200s."""
    see(monkeypatch, "NVIDIA H200", 139.8, 4)


def see(monkeypatch: pytest.MonkeyPatch, name: str, gib: float, count: int) -> None:
    seen = SimpleNamespace(name=name, total_memory=int(gib * GIB))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: seen)


def places(asked: Asked | None) -> list[str]:
    assert asked is not None
    assert asked.devices is not None
    return list(map(str, asked.devices))


def test_devices_as_users_give_them(gpus: None) -> None:
    assert read_devices(None, None, "cuda:3") is None
    assert places(read_devices(2, None, None)) == ["cuda:0", "cuda:1"]
    assert places(read_devices(2, None, "cuda")) == ["cuda:0", "cuda:1"]
    assert places(read_devices(1, None, None)) == ["cuda:0"]
    assert places(read_devices(3, None, "cpu")) == ["cpu"] * 3
    assert places(read_devices([3, "cuda:1"], None, None)) == ["cuda:3", "cuda:1"]
    assert places(read_devices((torch.device("cuda", 2),), None, None)) == ["cuda:2"]
    assert places(read_devices(["cpu", "cpu"], None, None)) == ["cpu", "cpu"]
    assert read_devices("auto", None, None) == Asked(None, "auto")
    assert read_devices(2, None, None) == read_devices(2, "tensor", None)


def test_without_a_gpu_they_are_processes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert places(read_devices(2, None, None)) == ["cpu", "cpu"]
    assert places(read_devices("auto", None, None)) == ["cpu"]


@pytest.mark.parametrize(
    ("devices", "device", "message"),
    [
        (2, "cuda", "devices=2, but PyTorch sees 0 GPUs on this host: give device='cpu' for processes on the CPU"),
        ([0, 1], None, "devices names cuda:0, but PyTorch sees 0 GPUs on this host: for processes on the CPU, write"),
    ],
)
def test_without_a_gpu_no_number_of_gpus_is_advised(
    monkeypatch: pytest.MonkeyPatch, devices: Any, device: str | None, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(vl.DeviceError, match=f"^{message}"):
        read_devices(devices, None, device)


@pytest.mark.parametrize(
    ("devices", "placement", "device", "error", "message"),
    [
        (5, None, None, vl.DeviceError, "sees 4 GPUs on this host: give devices=4"),
        ([0, 4], None, None, vl.DeviceError, "cuda:4, but PyTorch sees 4"),
        (0, None, None, vl.ConfigError, "1 to 4 devices; for the first GPU alone, give device='cuda:0'"),
        (-1, None, "cpu", vl.ConfigError, "1 to 16 devices"),
        (17, None, "cpu", vl.ConfigError, "1 to 16 devices"),
        (True, None, None, vl.ConfigError, "True is not a number, 'auto' or a list"),
        (2.0, None, None, vl.ConfigError, "2.0 is not a number"),
        ("both", None, None, vl.ConfigError, "'both' is not known"),
        ("2", None, None, vl.ConfigError, "'2' is not known: give a number"),
        ([], None, None, vl.ConfigError, "lists 0"),
        ([0, 0], None, None, vl.ConfigError, "cuda:0 twice"),
        ([0, "cuda"], None, None, vl.ConfigError, "cuda without a number"),
        ([0, "cpu"], None, None, vl.ConfigError, "kinds cpu, cuda"),
        ([256], None, None, vl.ConfigError, "256 is not a device"),
        (["cuda:257", "cuda:2"], None, None, vl.ConfigError, "'cuda:257' is not a device"),
        ([-1], None, None, vl.ConfigError, "-1 is not a device"),
        (np.array([0, 1]), None, None, vl.ConfigError, "is not a number, 'auto' or a list of devices"),
        (2, np.array(["tensor", "layers"]), None, vl.ConfigError, "is not known: use 'tensor'"),
        ([0, "gpu1"], None, None, vl.ConfigError, "'gpu1' is not a device"),
        ([0, None], None, None, vl.ConfigError, "None is not a device"),
        ([0, 1], None, "cuda", vl.ConfigError, "leave device='cuda' out"),
        (2, None, "cuda:1", vl.ConfigError, "device='cuda:1' with devices="),
        (2, None, "mps", vl.ConfigError, "device='mps' with devices="),
        (2, "rows", None, vl.ConfigError, "placement='rows' is not known: use 'tensor', 'expert', 'layers', "),
        ("auto", "context", None, vl.ConfigError, "placement='context' has the whole model on every device"),
        (None, "tensor", None, vl.ConfigError, "give devices= too"),
    ],
)
def test_what_cannot_be(
    gpus: None, devices: Any, placement: Any, device: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message.replace("(", r"\(")):
        vl.load("nano", devices=devices, placement=placement, device=device)


@pytest.mark.parametrize("timeout", [0, -1, True, "60", float("nan")])
def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    with pytest.raises(vl.ConfigError, match="step_timeout"):
        vl.load("nano", devices=2, device="cpu", step_timeout=timeout)


def test_a_timeout_is_of_several_devices() -> None:
    assert read_timeout(None, None) == read_timeout(None, 2) == 600
    assert read_timeout(7, "auto") == 7
    with pytest.raises(vl.ConfigError, match=r"step_timeout=7 .* give devices= too"):
        vl.load("nano", device="cpu", step_timeout=7)


@pytest.mark.parametrize(
    ("count", "placement", "message"),
    [
        (4, "tensor", r"devices=4: placement 'tensor' needs num_key_value_heads \(2\)"),
        (3, "expert", r"devices=3: placement 'expert' needs num_key_value_heads \(2\)"),
        (9, "layers", r"devices=9: placement 'layers' needs num_hidden_layers \(8\)"),
        (2, "auto", "placement='auto' is predicted for GPUs"),
    ],
)
def test_a_model_that_cannot_be_cut_so_is_refused(count: int, placement: str, message: str) -> None:
    with pytest.raises(vl.ConfigError, match=message):
        vl.load("nano", devices=count, placement=placement, device="cpu")


def test_sharing_a_prompt_leaves_no_page_in_host_memory() -> None:
    with pytest.raises(vl.ConfigError, match=r"host_cache_tokens=300 does not go with placement='context'"):
        vl.load("nano", devices=2, placement="context", device="cpu", host_cache_tokens=300)


def test_one_device_is_this_process(tiny_checkpoint: Path) -> None:
    for devices in (1, ["cpu"], "auto"):
        model = vl.load(tiny_checkpoint, devices=devices, device=None if devices == ["cpu"] else "cpu")
        assert type(model) is vl.MiniMaxVL
        assert model.devices == (torch.device("cpu"),)
        model.close()
        assert model.chat([{"role": "user", "content": "Hello"}], max_new_tokens=2) is not None


def settled(devices: Any, config: VLConfig, format: str | None, placement: str | None = None) -> tuple[int, str]:
    asked = read_devices(devices, placement, None)
    assert asked is not None
    placed = asked.place(config, format, ENGINE)
    return len(placed.devices), placed.placement


def test_auto_takes_what_the_plan_finds_fastest(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    nano, whole = read_config(NANO), released()
    assert settled("auto", nano, None)[0] == 1
    count, placement = settled("auto", whole, "nf4")
    assert (count, placement) == (4, "tensor")
    assert settled(2, whole, "nf4", "auto") == (2, "tensor")
    assert settled("auto", whole, "nf4", "layers")[1] == "layers"
    with pytest.raises(vl.DeviceError, match="does not fit on 4 x H200 in bf16"):
        settled("auto", whole, None)
    see(monkeypatch, "Tesla T4", 14.6, 2)
    with pytest.raises(vl.ConfigError, match="nothing is known of the speed of Tesla T4"):
        settled("auto", whole, "nf4")
    assert settled(2, whole, "nf4") == (2, "tensor")
