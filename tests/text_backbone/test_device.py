"""What GPUs are asked, with a stand-in for CUDA."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from text_backbone.kernels import device as gpus
from text_backbone.kernels.device import (
    capability,
    float32_precision,
    has_e4m3,
    kernels_on,
    multiprocessors,
    shared_memory,
)
from text_backbone.kernels.lightning import configs as lightning
from text_backbone.kernels.moe import configs as moe
from text_backbone.kernels.moe import kernels_for
from text_backbone.kernels.row_scaled import configs as row_scaled

ROOT = Path(__file__).parents[2]
CPU, META = torch.device("cpu"), torch.device("meta")
OLD, AMPERE, HOPPER = (torch.device("cuda", i) for i in range(3))


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """cuda:0 is a T4, cuda:1 an A100 and cuda:2 an H200; the current device is the last."""
    found = [((7, 5), 40, 64), ((8, 0), 108, 163), ((9, 0), 132, 227)]

    def at(device: torch.device | None) -> int:
        return 2 if device is None or device.index is None else device.index

    def properties(device: torch.device) -> SimpleNamespace:
        _, count, kib = found[at(device)]
        return SimpleNamespace(multi_processor_count=count, shared_memory_per_block_optin=kib * 1024)

    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: found[at(device)][0])
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    cached = (capability, multiprocessors, shared_memory, gpus._able)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_what_gpus_can(three_gpus: None) -> None:
    assert [capability(device) for device in (CPU, OLD, AMPERE, HOPPER, META)] == [
        (0, 0), (7, 5), (8, 0), (9, 0), (9, 0)
    ]  # fmt: skip
    assert [multiprocessors(device) for device in (OLD, AMPERE, HOPPER)] == [40, 108, 132]
    assert shared_memory(AMPERE) == 163 * 1024
    assert kernels_on(AMPERE)
    assert kernels_on(HOPPER)
    assert [has_e4m3(device) for device in (CPU, AMPERE, HOPPER)] == [False, False, True]
    assert not kernels_on(CPU)
    with pytest.warns(UserWarning, match=r"Tesla T4: its compute capability 7\.5 is below 8\.0"):
        assert not kernels_on(OLD)
    with gpus.reference_kernels():
        assert not kernels_on(HOPPER)


def test_amd_gpus_run_the_references(three_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert capability(HOPPER) == (0, 0)
    with pytest.warns(UserWarning, match="written for NVIDIA"):
        assert not kernels_on(HOPPER)


def test_tiles_fit_the_shared_memory(three_gpus: None) -> None:
    large, small, _ = lightning.WALK[128]
    assert lightning.pick(lightning.WALK, 128, torch.bfloat16, HOPPER) == large
    assert lightning.pick(lightning.WALK, 128, torch.bfloat16, AMPERE) == small
    assert moe.inference_tiles(10**6, 32, torch.bfloat16, HOPPER) == moe.INFERENCE[-1][1:]
    assert moe.inference_tiles(10**6, 32, torch.bfloat16, AMPERE) == moe.INFERENCE_SMALL[-1][1:]
    for codes in (torch.int8, torch.float8_e4m3fn):
        assert moe.inference_tiles(10**6, 32, torch.bfloat16, HOPPER, codes) == moe.INFERENCE_8[codes][-1][1:]
        assert moe.inference_tiles(10**6, 32, torch.bfloat16, AMPERE, codes) == moe.INFERENCE_8_SMALL[codes][-1][1:]
        assert row_scaled.dense_tile(64, 6144, torch.bfloat16, codes, HOPPER) == row_scaled.NARROW[codes]
    assert row_scaled.dense_tile(64, 24576, torch.bfloat16, torch.int8, HOPPER) in dict(row_scaled.INT8).values()
    assert row_scaled.dense_tile(8, 6144, torch.bfloat16, torch.int8, HOPPER) in dict(row_scaled.INT8).values()
    fp8 = row_scaled.dense_tile(64, 6144, torch.bfloat16, torch.float8_e4m3fn, AMPERE)
    assert fp8 in dict(row_scaled.FP8_SMALL).values()


@pytest.mark.parametrize(
    ("formats", "device", "module"),
    [
        (("int8", "int8"), HOPPER, "row_scaled"),
        (("int8", "int8"), AMPERE, "row_scaled"),
        (("fp8", "fp8"), HOPPER, "row_scaled"),
        (("fp8", "fp8"), AMPERE, None),  # which has no e4m3
        (("int8", "fp8"), HOPPER, None),
        (("nf4", "nf4"), HOPPER, "nf4"),
    ],
)
def test_kernels_of_stored_experts(
    three_gpus: None, formats: tuple[str, str], device: torch.device, module: str | None
) -> None:
    pytest.importorskip("triton")
    x: Any = SimpleNamespace(dtype=torch.bfloat16, device=device, requires_grad=False)
    w13, w2 = (cast(Any, SimpleNamespace(format=form)) for form in formats)
    picked = kernels_for(x, w13, w2, torch.ones(1))
    assert (picked and picked.__name__.rpartition(".")[2]) == module
    # Gradients are the reference's to compute.
    assert kernels_for(x, w13, w2, torch.ones(1, requires_grad=True)) is None


@pytest.mark.parametrize(("allowed", "expected"), [("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")])
def test_float32_products(allowed: str, expected: str) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(allowed)
        assert float32_precision() == expected
    finally:
        torch.set_float32_matmul_precision(before)


def test_one_file_of_a_package_asks_cuda() -> None:
    asking = re.compile(r"get_device_(capability|properties|name)|find_spec|version\.hip|get_float32_matmul_precision")
    for package in ("text_backbone", "vision_encoder"):
        files = {path for path in (ROOT / package).rglob("*.py") if asking.search(path.read_text())}
        assert files == {ROOT / package / "kernels" / "device.py"}
