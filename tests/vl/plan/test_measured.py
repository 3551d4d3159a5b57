"""Predictions against what was measured on one H200 (docs/benchmarks.md, 23 November 2026, and a run of 1 M tokens).

The slice is eight layers of full width in bfloat16; NF4's operations are of 28 November. docs/plan.md shows these rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import vl
from text_backbone.config import TextConfig, hybrid_layers
from vision_encoder import VisionConfig
from vl.config import VLConfig
from vl.plan import FORMATS, Machine, Workload, find_gpu
from vl.plan.gpus import GIB
from vl.plan.memory import CUBLAS, cache_memory, prefill_peak
from vl.plan.models import released
from vl.plan.planner import consider
from vl.plan.share import Share, by_context, by_tensor, whole
from vl.plan.sizes import weight_bytes
from vl.plan.speed import Estimate, vision_seconds

SLICE = TextConfig(attn_type_list=hybrid_layers(8))
PAGE = Path(vl.__file__).parents[1] / "docs" / "plan.md"
SPEED, MEMORY = 0.25, 0.05  # how far a prediction may be off


@dataclass(frozen=True)
class Measurement:
    what: str
    unit: str
    measured: float
    predict: Callable[[], float]
    within: float

    @property
    def row(self) -> str:
        """As docs/plan.md shows it."""
        predicted = self.predict()
        return f"| {self.what} | {predicted:.4g} {self.unit} | {self.measured:.4g} | {predicted / self.measured:.2f} |"


def estimate(form: str = "bf16") -> Estimate:
    return Estimate(whole(VLConfig(SLICE)), FORMATS[form], find_gpu("H200"))


def prefill(tokens: int, chunk: int, measured: float, within: float = SPEED) -> Measurement:
    """Thousands of tokens a second."""
    passes = f" in passes of {chunk}" if chunk < tokens else ""
    return Measurement(
        f"slice, prefill of {tokens}{passes}",
        "k tok/s",
        measured,
        lambda: tokens / estimate().prefill(tokens, chunk) / 1e3,
        within,
    )


def shared(tokens: int, chunk: int, measured: float) -> Measurement:
    """Thousands of tokens a second of two GPUs, each with all of the slice but 28 of a layer's experts."""
    placement = by_context(VLConfig(replace(SLICE, num_local_experts=4)), 2)
    assert placement is not None
    two = Estimate(placement, FORMATS["bf16"], find_gpu("H200"))
    what = f"slice of 4 experts on two by context, prefill of {tokens} in passes of {chunk}"
    return Measurement(what, "k tok/s", measured, lambda: tokens / two.prefill(tokens, chunk) / 1e3, SPEED)


def decode(batch: int, measured: float) -> Measurement:
    return Measurement(
        f"slice, a step of batch {batch}", "ms", measured, lambda: 1e3 * estimate().decode(1024, batch), SPEED
    )


def tower(tiles: int, measured: float) -> Measurement:
    return Measurement(
        f"vision tower, {tiles} tile{'s' * (tiles > 1)}",
        "tiles/s",
        measured,
        lambda: tiles / vision_seconds(find_gpu("H200"), VisionConfig(), tiles),
        SPEED,
    )


def experts(tokens: int, measured: float, inner: int = SLICE.intermediate_size) -> Measurement:
    """Of a layer in NF4; the half of every expert is what one of two GPUs has."""
    part = "half of a layer's experts" if inner < SLICE.intermediate_size else "a layer's experts"
    what = f"NF4, {part}, {tokens} token{'s' * (tokens > 1)}"
    text = replace(SLICE, intermediate_size=inner)
    return Measurement(what, "ms", measured, lambda: 1e3 * estimate("nf4").experts(text, tokens), SPEED)


def projection(rows: int, columns: int, tokens: int, measured: float) -> Measurement:
    return Measurement(
        f"NF4, projection {rows} x {columns}, {tokens} token{'s' * (tokens > 1)}",
        "us",
        measured,
        lambda: 1e6 * estimate("nf4").products([(rows, columns)], tokens),
        SPEED,
    )


def two() -> Estimate:
    """The released model in NF4 on two GPUs."""
    placement = by_tensor(released(), 2)
    assert placement is not None
    return Estimate(placement, FORMATS["nf4"], find_gpu("H200"))


def held_by_two() -> float:
    """GiB of each GPU, with 64 sequences in a cache of 26 624 tokens."""
    form, machine = FORMATS["nf4"], Machine(find_gpu("H200"), 2)
    return consider(two().placement, form, machine, Workload(26624 // 64, 64, prefill_tokens=16384)).memory.total / GIB


def weights() -> float:
    return weight_bytes(Share(SLICE), FORMATS["bf16"]) / GIB


def beside_weights(tokens: int, chunk: int) -> float:
    """Cache, activations and workspace of reading a prompt, in GiB; nothing was written, so there were no graphs."""
    cache = sum(cache_memory(SLICE, Workload(tokens), tokens))
    return (cache + prefill_peak(SLICE, chunk, tokens - chunk) + CUBLAS) / GIB


MEASUREMENTS = [
    prefill(2048, 8192, 50.9),
    prefill(8192, 8192, 64.4),
    prefill(32768, 32768, 64.6),
    prefill(32768, 8192, 32.768 / 0.540),
    prefill(131072, 8192, 52.0),
    prefill(2**20, 8192, 1048.576 / 47.0),
    shared(32768, 32768, 125.071),
    shared(65536, 16384, 115.572),
    decode(1, 3.02),
    decode(8, 9.54),
    decode(64, 21.8),
    tower(1, 539),
    tower(8, 1186),
    tower(76, 1433),
    *(
        experts(*row)
        for row in ((1, 0.074), (2, 0.137), (8, 0.475), (64, 1.75), (256, 5.13), (4096, 9.05), (16384, 21.7))
    ),
    *(experts(*row, inner=4608) for row in ((1, 0.044), (2, 0.0787), (8, 0.266), (64, 0.99))),
    *(projection(24576, 6144, *row) for row in ((1, 31.3), (8, 53.6), (32, 175))),
    *(projection(8192, 6144, *row) for row in ((1, 11.6), (8, 23.7), (32, 61))),
    *(projection(6144, 8192, *row) for row in ((1, 13.5), (8, 23.8), (32, 65))),
    Measurement(
        "whole model in NF4 on two, prefill of 16384",
        "k tok/s",
        10.72,
        lambda: 16.384 / two().prefill(16384, 16384),
        SPEED,
    ),
    # In larger batches random weights made sequences choose nearly the same experts.
    Measurement("whole model in NF4 on two, batch 1", "tok/s", 119.5, lambda: 1 / two().decode(140, 1), SPEED),
    Measurement("whole model in NF4 on two, each GPU's memory", "GiB", 132.5, held_by_two, MEMORY),
    Measurement("slice, weights", "GiB", 89, weights, MEMORY),
    Measurement(
        "slice, beside the weights, prefill of 32768", "GiB", 3.98, lambda: beside_weights(32768, 32768), MEMORY
    ),
    Measurement(
        "slice, peak, prefill of 1048576 in passes of 8192",
        "GiB",
        94.6,
        lambda: weights() + beside_weights(2**20, 8192),
        MEMORY,
    ),
]


@pytest.mark.parametrize("measurement", MEASUREMENTS, ids=[m.what for m in MEASUREMENTS])
def test_predictions_are_near_what_was_measured(measurement: Measurement) -> None:
    assert measurement.predict() == pytest.approx(measurement.measured, rel=measurement.within)


def test_there_are_enough_settings_of_each_kind() -> None:
    assert sum(m.within == SPEED for m in MEASUREMENTS) >= 12
    assert sum(m.within == MEMORY for m in MEASUREMENTS) >= 3


def test_the_page_shows_them() -> None:
    text = PAGE.read_text()
    missing = [measurement.row for measurement in MEASUREMENTS if measurement.row not in text]
    assert not missing, "\n".join(missing)
