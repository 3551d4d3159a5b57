"""Modules swapped into a decoder: what it computes, and that nothing else of it changes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from text_backbone import HybridCache, MiniMaxText, Packed, TextConfig, released_tensors
from text_backbone.moe import Experts
from text_backbone.quantization import (
    FORMATS,
    Quantized,
    QuantizedExperts,
    QuantizedLinear,
    quantize_backbone,
    quantized_backbone,
)
from text_backbone.quantization.files import is_quantised

FORMAT = pytest.mark.parametrize("form", FORMATS)


def logits(model: MiniMaxText) -> torch.Tensor:
    ids = torch.arange(40) % 50
    with torch.inference_mode():
        return model.logits(model(model.embed(ids), Packed.of([23, 17])))


@pytest.fixture(params=FORMATS)
def quantised(request: pytest.FixtureRequest, model: MiniMaxText) -> tuple[str, MiniMaxText]:
    made = copy.deepcopy(model)
    quantize_backbone(made, request.param)
    return request.param, made


def test_what_is_swapped(quantised: tuple[str, MiniMaxText], model: MiniMaxText) -> None:
    form, made = quantised
    swapped = {name for name, module in made.named_modules() if isinstance(module, Quantized)}
    ends = [f"{name}_proj.weight" for name in ("qkv", "out", "q", "k", "v", "o")]
    ends += ["output_gate.weight", "experts.w13", "experts.w2"]
    assert {next(end for end in ends if name.endswith(f".{end}")) for name in swapped} == set(ends)
    assert {name for name, _ in model.named_parameters()} - {name for name, _ in made.named_parameters()} == swapped
    assert all("gate.weight" not in name or "output_gate" in name for name in swapped)
    assert {name: slot.shape for name, slot in released_tensors(made).items()} == {
        name: slot.shape for name, slot in released_tensors(model).items()
    }
    for name, slot in released_tensors(made).items():
        before = released_tensors(model)[name].read()
        assert torch.equal(slot.read(), before) is not is_quantised(name), (form, name)


def test_it_computes_with_the_values_that_it_reads_out(
    quantised: tuple[str, MiniMaxText], build: Callable[..., MiniMaxText], config: Callable[..., TextConfig]
) -> None:
    form, made = quantised
    plain = build(config(), seed=5)
    for name, slot in released_tensors(plain).items():
        slot.load(released_tensors(made)[name].read())
    same = torch.allclose(logits(made), logits(plain), rtol=1e-4, atol=1e-4)
    assert same is (form != "fp8"), "FP8 rounds activations too"


def test_it_is_near_what_was_quantised(quantised: tuple[str, MiniMaxText], model: MiniMaxText) -> None:
    form, made = quantised
    distance = ((logits(made) - logits(model)).norm() / logits(model).norm()).item()
    assert 0 < distance < {"int8": 0.05, "fp8": 0.3, "nf4": 0.5}[form]


def test_chunks_and_cache_equal_one_pass(
    quantised: tuple[str, MiniMaxText], feed: Callable[..., list[torch.Tensor]]
) -> None:
    _, made = quantised
    ids = [torch.arange(30) % 50, torch.arange(12)]
    whole = feed(made, HybridCache(made.config, slots=2, pages=8), ids, [[30], [12]])
    cut = feed(made, HybridCache(made.config, slots=2, pages=8), ids, [[16, 13, 1], [11, 1]])
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_linear_in_fp8_rounds_both_sides() -> None:
    linear = torch.nn.Linear(64, 48, bias=False)
    x = torch.randn(9, 64)
    weight, rows = FORMATS["fp8"].quantize(linear.weight), FORMATS["fp8"].quantize(x)
    exact = (rows.codes.double() @ weight.codes.double().T) * rows.scales.double()[:, None] * weight.scales.double()
    torch.testing.assert_close(QuantizedLinear(linear, "fp8")(x).double(), exact, rtol=1e-5, atol=1e-5)


@FORMAT
def test_experts_are_gated_mlps_of_what_they_hold(form: str, config: Callable[..., TextConfig]) -> None:
    """Expert by expert in float64, one of them without a token."""
    experts = Experts(config())
    torch.nn.init.normal_(experts.w13, std=0.2)
    torch.nn.init.normal_(experts.w2, std=0.2)
    made = QuantizedExperts(experts, form)
    x, chosen = torch.randn(11, 24), torch.tensor([[0, 1], [3, 0]]).repeat(6, 1)[:11]
    weights = torch.rand(11, 2)
    round_ = FORMATS["fp8"].dequantize if form == "fp8" else None

    def rounded(rows: torch.Tensor) -> torch.Tensor:
        if round_ is None:
            return rows
        return round_(FORMATS["fp8"].quantize(rows.float()), rows.shape[-1], torch.float32).double()

    want = torch.zeros(11, 24, dtype=torch.float64)
    for t in range(11):
        for j in range(2):
            e = int(chosen[t, j])
            (w1, w3), w2 = made.w13.read((e,)).double(), made.w2.read((e,)).double()
            row = rounded(x[t : t + 1].double())
            inner = F.silu(row @ w1.T) * (row @ w3.T)
            want[t] += weights[t, j] * (rounded(inner) @ w2.T)[0]
    # A value next to the middle of two codes may go either way.
    torch.testing.assert_close(made(x, weights, chosen).double(), want, rtol=1e-4, atol=2e-3 if form == "fp8" else 1e-4)


@FORMAT
def test_a_model_that_never_was_in_full(form: str, model: MiniMaxText) -> None:
    """Built on `meta` and loaded tensor by tensor, it is bit for bit the one that was quantised in place."""
    made, there = quantized_backbone(model.config, form, device="cpu"), copy.deepcopy(model)
    for name, slot in released_tensors(made).items():
        slot.load(released_tensors(model)[name].read())
    quantize_backbone(there, form)
    assert torch.equal(logits(made), logits(there))
    big = quantized_backbone(TextConfig(), form, device="meta", dtype=torch.bfloat16)
    held = sum(t.nbytes for t in [*big.parameters(), *big.buffers()])
    bits = {"int8": 8, "fp8": 8, "nf4": 4.127}[form]
    kept = sum(p.nbytes for p in big.parameters())
    assert held - kept == pytest.approx((456_089_655_296 - kept / 2) * bits / 8, rel=2e-3)


@FORMAT
def test_gradients_reach_what_is_not_quantised(form: str, model: MiniMaxText) -> None:
    """After a pass in inference mode, which makes the formats' tables."""
    made = copy.deepcopy(model)
    quantize_backbone(made, form)
    logits(made)
    ids = torch.arange(20)
    made.logits(made(made.embed(ids), Packed.of([20]))).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in made.parameters())


@FORMAT
def test_casting_and_moving_keep_what_is_stored(form: str) -> None:
    linear = QuantizedLinear(torch.nn.Linear(64, 8, bias=False), form)
    before = {name: part.clone() for name, part in linear.named_buffers()}
    linear.to(torch.bfloat16).to("cpu").half()
    for name, part in linear.named_buffers():
        assert part.dtype == before[name].dtype
        assert torch.equal(part.flatten().view(torch.uint8), before[name].flatten().view(torch.uint8))
    assert linear.weight.read().dtype == torch.float16
    assert linear(torch.randn(3, 64).half()).dtype == torch.float16


@FORMAT
def test_a_slot_refuses_what_is_not_finite(form: str) -> None:
    stored = QuantizedLinear(torch.nn.Linear(64, 8, bias=False), form).weight
    with pytest.raises(ValueError, match="NaN or infinite"):
        stored.slot().load(torch.full((8, 64), math.nan))


def test_a_matrix_that_a_format_cannot_hold(config: Callable[..., TextConfig]) -> None:
    with pytest.raises(ValueError, match="odd number"):
        quantized_backbone(config(hidden_size=25, intermediate_size=5), "nf4")
