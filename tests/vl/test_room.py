"""Models on the CPU that the host's memory could not hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vl
from vl.bench.made import random_whole
from vl.engine import memory
from vl.plan.models import find_config
from vl.room import weight_bytes


@pytest.mark.parametrize("form", [None, "int8", "fp8", "nf4"])
def test_weights_are_the_models(form: str | None, tiny_checkpoint: Path) -> None:
    model = vl.load(tiny_checkpoint, device="cpu", dtype="bfloat16", quantization=form)
    held = sum(tensor.nbytes for tensor in model.state_dict().values())
    # A scale of scales is for 256 blocks, and a matrix here has fewer.
    assert weight_bytes(model.config, torch.bfloat16) == pytest.approx(held, rel=0.01)


def test_what_the_host_could_not_hold_is_refused(
    tiny_checkpoint: Path, tiny_model: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = weight_bytes(tiny_model.config, torch.float32)
    monkeypatch.setattr(memory, "free", lambda device: needed - 1)
    with pytest.raises(vl.DeviceError, match=r"weights of .* take .* GiB of host memory, and .* are free: quantise"):
        vl.load(tiny_checkpoint, device="cpu")
    with pytest.raises(vl.DeviceError, match=r"weights of .* are free"):
        vl.load(tiny_checkpoint, devices=2, device="cpu", placement="layers")
    assert vl.load(tiny_checkpoint, device="cpu", quantization="nf4").config.quantization == "nf4", "which is less"
    monkeypatch.setattr(memory, "free", lambda device: needed)
    with pytest.raises(vl.DeviceError, match=r"weights of .* are free"):
        vl.load(tiny_checkpoint, devices=2, device="cpu", placement="context")  # all of it, twice


def test_a_config_of_any_number_of_layers_is_measured_in_no_time() -> None:
    config = find_config("MiniMax-VL-01")
    assert config.vision is not None
    deep = replace(config, vision=replace(config.vision, num_hidden_layers=10**9))  # to count them all takes hours
    assert weight_bytes(deep, torch.bfloat16) > 10**12


@pytest.mark.parametrize("devices", [None, 2])
def test_so_is_one_whose_weights_are_made(devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda device: 2**34)
    with pytest.raises(vl.DeviceError, match=r"take 228\.5 GiB of host memory, and .* are free: use a host"):
        random_whole("MiniMax-VL-01", quantization="nf4", devices=devices, device="cpu")
