"""int8 and FP8: their errors are those that the formats' steps give."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from text_backbone.kernels.row_scaled.reference import rounded
from text_backbone.quantization import fp8, int8, nf4

EIGHT = pytest.mark.parametrize("form", [int8, fp8], ids=["int8", "fp8"])
ALL = pytest.mark.parametrize("form", [int8, fp8, nf4], ids=["int8", "fp8", "nf4"])


def drawn(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_the_error_of_int8_is_that_of_a_uniform_step() -> None:
    matrix = drawn(64, 4096)
    weight = int8.quantize(matrix)
    error = int8.dequantize(weight, 4096, torch.float32) - matrix
    steps = matrix.abs().amax(dim=1) / 127
    assert torch.equal(weight.scales, steps)
    assert (error.abs() <= steps[:, None] * 0.5001).all()
    rms = error.square().mean(dim=1).sqrt()
    torch.testing.assert_close(rms, steps / math.sqrt(12), rtol=0.05, atol=0)


def test_the_error_of_fp8_is_half_a_step_of_three_bits() -> None:
    matrix = drawn(64, 4096)
    weight = fp8.quantize(matrix)
    error = (fp8.dequantize(weight, 4096, torch.float32) - matrix).abs()
    assert torch.equal(weight.scales, matrix.abs().amax(dim=1) / 448)
    bound = torch.maximum(matrix.abs() * 2**-4, weight.scales[:, None] * 2**-10)
    assert (error <= bound * 1.0001).all()
    # Within a power of two the step is 2^-3 of it, and its error uniform: over a uniform mantissa in [1, 2),
    # rms / rms(x) = 2^-3 / sqrt(12) / sqrt(7/3).
    share = (error.square().sum() / matrix.square().sum()).sqrt().item()
    assert share == pytest.approx(2**-3 / math.sqrt(12) / math.sqrt(7 / 3), rel=0.15)


@EIGHT
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    spread=st.sampled_from([1e-30, 1e-4, 1.0, 3e4]),
    seed=st.integers(0, 1 << 20),
)
def test_any_size_and_dtype(
    form: ModuleType, rows: int, columns: int, dtype: torch.dtype, spread: float, seed: int
) -> None:
    matrix = (drawn(rows, columns, seed).clamp(-2, 2) * spread).to(dtype)
    got = form.dequantize(form.quantize(matrix), columns, torch.float32)
    assert got.shape == matrix.shape
    largest = matrix.float().abs().amax(dim=1, keepdim=True)
    assert ((got - matrix.float()).abs() <= largest * (2**-4 if form is fp8 else 0.51 / 127)).all()
    # The largest of a row is kept to rounding, and what is quantised already changes no more.
    torch.testing.assert_close(got.abs().amax(dim=1, keepdim=True), largest, rtol=1e-6, atol=0)
    again = form.quantize(got)
    assert torch.equal(form.dequantize(again, columns, torch.float32).abs() > 0, got.abs() > 0)


@ALL
def test_rows_of_zeros_stay_zero(form: ModuleType) -> None:
    matrix = drawn(6, 64)
    matrix[::2] = 0
    got = form.dequantize(form.quantize(matrix), 64, torch.float32)
    # NF4's scales are offsets from a mean: what is left of a zero block is its level 0 times that.
    assert (got[::2] == 0).all()
    assert got[1::2].abs().amax(dim=1).gt(0).all()
    assert not form.dequantize(form.quantize(torch.zeros(3, 64)), 64, torch.float32).any()


@ALL
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
def test_values_that_are_not_finite_are_refused(form: ModuleType, value: float) -> None:
    matrix = drawn(4, 64).double()
    matrix[2, 7] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        form.quantize(matrix)


@EIGHT
def test_several_matrices_in_one(form: ModuleType) -> None:
    matrices = drawn(3 * 2 * 5, 7).view(3, 2, 5, 7)
    store = form.empty((3, 2), 5, 7)
    for e in range(3):
        for i in range(2):
            for part, value in zip(store, form.quantize(matrices[e, i]), strict=True):
                part[e, i] = value
    got = form.dequantize(store, 7, torch.float32)
    assert torch.equal(got[2, 1], form.dequantize(form.quantize(matrices[2, 1]), 7, torch.float32))


def test_activations_are_rounded_row_by_row() -> None:
    x = drawn(5, 32) * torch.tensor([1e-3, 1.0, 100.0, 0.0, 7.0])[:, None]
    got = rounded(x)
    assert torch.equal(got, fp8.dequantize(fp8.quantize(x), 32, torch.float32))
    assert torch.equal(rounded(x[1:2]), got[1:2])  # whatever the other rows are
    x[0, 0] = math.nan
    assert rounded(x)[0].isnan().all()
    assert torch.equal(rounded(x)[1:], got[1:])


def test_gradients_pass_the_rounding() -> None:
    x = drawn(3, 8).requires_grad_()
    rounded(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(3, 8))
