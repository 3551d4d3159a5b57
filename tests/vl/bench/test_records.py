"""Floors and ratios against figures worked out by hand for the released sizes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from text_backbone.config import hybrid_layers
from vision_encoder import VisionConfig
from vl.bench import model, vision
from vl.bench.formats import NAMES, product_work
from vl.bench.ops import attention, lightning, moe
from vl.bench.records import OURS, Ceilings, Record, Report, Setting, Work
from vl.bench.tables import duration, failures

H200 = Ceilings(bandwidth=4.25e12, rate=790e12)
FULL = Setting(torch.device("cuda"), small=False, quick=False, memory=139 * 2**30)


def test_a_floor_is_the_slower_of_memory_and_arithmetic() -> None:
    ceilings = Ceilings(bandwidth=100.0, rate=1000.0)
    assert Work(bytes=200, flops=500).floor(ceilings) == 2.0
    assert Work(bytes=200, flops=5000).floor(ceilings) == 5.0


@pytest.mark.parametrize(
    ("tokens", "sequences", "milliseconds"),
    [(32768, 1, 0.50), (8192, 1, 0.125), (131072, 1, 2.0), (1, 1, 0.0020), (64, 64, 0.125), (256, 256, 0.499)],
)
def test_lightning_floors(tokens: int, sequences: int, milliseconds: float) -> None:
    work = lightning.prefill_work(tokens, sequences, heads=64, d=128, itemsize=2)
    assert work.floor(H200) * 1e3 == pytest.approx(milliseconds, rel=0.03)


@pytest.mark.parametrize(
    ("tokens", "used", "milliseconds"),
    [(16384, 32, 14.1), (4096, 32, 3.5), (512, 32, 2.5), (64, 31.5, 2.5), (8, 12.9, 1.03), (1, 2, 0.16)],
)
def test_moe_floors(tokens: int, used: float, milliseconds: float) -> None:
    assert moe.moe_work(tokens, used, 6144, 9216, 2).floor(H200) * 1e3 == pytest.approx(milliseconds, rel=0.03)


def test_attention_counts_half_of_the_square() -> None:
    work = attention.prefill_work(32768, heads=64, kv_heads=8, d=128, itemsize=2)
    assert work.flops == 32768 * 32768 * 64 * 128 * 2  # two products of 2 operations, below the diagonal
    assert work.bytes == 32768 * (64 + 64 + 8 + 8) * 128 * 2
    assert attention.decode_work(2**20, 1, 64, 8, 128, 2).bytes == pytest.approx(2**20 * 8 * 128 * 2 * 2, rel=1e-4)


def test_the_vision_tower_at_its_floor() -> None:
    assert 76 / vision.tower_work(76, VisionConfig(), 2).floor(H200) == pytest.approx(2070, rel=0.01)


def test_the_slice() -> None:
    config, label = model.slice_config(FULL)
    assert label == "8 layers of 32 experts, full width"
    assert config.attn_type_list == hybrid_layers(8) == (0, 0, 0, 0, 0, 0, 0, 1)
    assert model.held_bytes(config, None) / 2**30 == pytest.approx(89, abs=0.5)
    assert model.decode_floor(config, 1, 2, None, H200) * 1e3 == pytest.approx(2.75, rel=0.01)
    assert 70e3 < 32768 / model.prefill_floor(config, 32768, 2, None, H200) < 85e3


@pytest.mark.parametrize(("form", "gib", "decode"), [("int8", 46.8, 1.67), ("fp8", 46.8, 1.67), ("nf4", 26.4, 1.15)])
def test_the_slice_in_other_formats(form: str, gib: float, decode: float) -> None:
    """45.36e9 values are quantised, of which a token is multiplied by 4.59e9, and 2.46e9 are not."""
    config, label = model.slice_config(replace(FULL, quantization=form))
    assert label == f"8 layers of 32 experts, full width, {NAMES[form]}"
    assert model.held_bytes(config, form) / 2**30 == pytest.approx(gib, rel=0.01)
    assert model.decode_floor(config, 1, 2, form, H200) * 1e3 == pytest.approx(decode, rel=0.01)
    plain, stored = (model.prefill_floor(config, 32768, 2, name, H200) for name in (None, form))
    saved = 32768 * 4.593e9 / 790e12 if form == "fp8" else 0  # half of two operations for every token and value
    assert plain - stored == pytest.approx(saved, rel=0.01, abs=1e-3)


def test_a_product_of_quantised_weights() -> None:
    """Half of the bytes, and with FP8 half of the time on tensor cores."""
    plain, int8, fp8, nf4 = (product_work(1e6, 4, 100, 2, form) for form in (None, "int8", "fp8", "nf4"))
    assert [work.bytes for work in (plain, int8, fp8, nf4)] == pytest.approx(
        [2e6 + 100, 1e6 + 100, 1e6 + 100, 515969.0]
    )
    assert [work.flops for work in (plain, int8, fp8, nf4)] == [8e6, 8e6, 4e6, 8e6]


@pytest.mark.parametrize(("gib", "experts"), [(139, 32), (79, 16), (47, 8), (24, 4)])
def test_the_slice_that_fits(gib: int, experts: int) -> None:
    setting = Setting(torch.device("cuda"), small=False, quick=False, memory=gib * 2**30)
    assert model.slice_config(setting)[0].num_local_experts == experts


def test_ratios() -> None:
    def record(contender: str, seconds: float | None, error: str = "") -> Record:
        return Record("op", "8 tokens", 8, "tokens", contender, seconds=seconds, floor=0.25, error=error)

    other = Record("op", "9 tokens", 9, "tokens", "peer", seconds=1.0, floor=0.3)
    report = Report({"name": "here"}, H200, [record(OURS, 0.5), record("peer", 2.0), record("torn", None, "x"), other])
    ours, peer, torn, _ = report.records
    assert ours.over_floor == 2.0
    assert ours.rate == 16.0
    assert report.ours_over(peer) == 0.25
    assert report.ours_over(torn) is None
    assert report.ours_over(other) is None, "ours was not measured on that case"
    assert failures(report, "op") == ["op, 8 tokens, torn: x"]
    rows = json.loads(json.dumps(report.as_json()))["records"]
    assert [row["ours_over"] for row in rows] == [1.0, 0.25, None, None]
    assert [row["over_floor"] for row in rows][:2] == [2.0, 8.0]


def test_durations() -> None:
    assert [duration(s) for s in (2.04e-6, 15.6e-6, 0.812e-3, 14.13e-3, 0.4312, 1.2, None)] == [
        "2.04 us", "15.6 us", "0.812 ms", "14.1 ms", "431 ms", "1.20 s", "-",
    ]  # fmt: skip
