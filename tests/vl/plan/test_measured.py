"""Predictions against what was measured on one H200 (docs/benchmarks.md, 23 November 2026, and a run of 1 M tokens).

The slice is eight layers of full width in bfloat16. docs/plan.md shows these rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import vl
from text_backbone.config import TextConfig, hybrid_layers
from vision_encoder import VisionConfig
from vl.config import VLConfig
from vl.plan import FORMATS, Workload, find_gpu
from vl.plan.gpus import GIB
from vl.plan.memory import CUBLAS, cache_memory, prefill_peak
from vl.plan.share import Share, whole
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


def estimate() -> Estimate:
    return Estimate(whole(VLConfig(SLICE)), FORMATS["bf16"], find_gpu("H200"))


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
    decode(1, 3.02),
    decode(8, 9.54),
    decode(64, 21.8),
    tower(1, 539),
    tower(8, 1186),
    tower(76, 1433),
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
