from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vl.model import MiniMaxVL
from vl.training import step
from vl.training.build import build_model
from vl.training.config import IMAGE_ID, TrainConfig
from vl.training.data import DrawnBatches
from vl.training.flops import StepFlops, measure_peak, projector_flops, text_flops, vit_flops
from vl.training.freeze import freeze
from vl.training.step import Learner


@pytest.fixture(autouse=True)
def plain_attention(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attention as matrix products: which of its fused kernels torch counts differs by version and build."""
    monkeypatch.setattr(step, "_ATTENTION", [SDPBackend.MATH])
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture
def model(config: TrainConfig) -> MiniMaxVL:
    return build_model(config, torch.device("cpu"))


def test_the_vision_encoders_count_is_torchs(config: TrainConfig, model: MiniMaxVL) -> None:
    batch = DrawnBatches(config.data, model.processor, IMAGE_ID, config.data.open_source())[0, 2]
    assert model.vision is not None
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.vision(batch.tiles, batch.grids)
    ours = sum(vit_flops(model.vision.config, len(batch.tiles))) + projector_flops(model.vision.config, batch.grids)
    assert counter.get_total_flops() == ours


def test_the_decoders_matrices_and_attention_are_counted(model: MiniMaxVL) -> None:
    text = model.config.text
    linears = [module for module in model.language_model.modules() if isinstance(module, torch.nn.Linear)]
    experts = text.num_hidden_layers * text.num_experts_per_tok * 3 * text.hidden_size * text.intermediate_size
    matrices, attention = text_flops(text, [1], 1)
    assert matrices == 2 * (sum(linear.weight.numel() for linear in linears) + experts)
    inner = text.num_attention_heads * text.head_dim
    assert attention == 3 * 4 * inner * text.head_dim + 4 * inner
    # Of n tokens, softmax attention looks at n (n + 1) / 2 pairs; all else grows in proportion.
    assert text_flops(text, [10], 0)[1] - 10 * attention == 4 * inner * (55 - 10)
    assert text_flops(text, [3, 7], 0)[0] == text_flops(text, [10], 0)[0]


PARTS_THAT_LEARN = [("projector", "vision", "text"), ("projector", "text"), ("projector",), ("vision",), ("text",)]


def test_gradients_that_nobody_needs_are_not_counted(config: TrainConfig, model: MiniMaxVL) -> None:
    """How a step's operations depend on what learns is as torch counts it.

    Totals cannot be compared: the reference of lightning attention computes its chunks by the square.
    """
    config = replace(config, data=replace(config.data, batch_tokens=100))
    batch = DrawnBatches(config.data, model.processor, IMAGE_ID, config.data.open_source())[0, 2]
    ours, torchs = [], []
    for learnt in PARTS_THAT_LEARN:
        freeze(model, learnt)
        with FlopCounterMode(display=False) as counter:
            Learner(model)(batch, balance=0.0, dense=0.0, max_tiles=512).total.backward()
        ours.append(StepFlops(model)(batch))
        torchs.append(counter.get_total_flops())
    for number in range(1, len(ours)):
        assert ours[0] - ours[number] == pytest.approx(torchs[0] - torchs[number], rel=0.05), PARTS_THAT_LEARN[number]


def test_a_measured_peak_is_a_rate() -> None:
    assert 1e7 < measure_peak(torch.device("cpu"), torch.float32) < 1e15
