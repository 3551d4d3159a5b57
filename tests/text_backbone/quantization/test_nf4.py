"""NF4 beside bitsandbytes on the CPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from text_backbone.kernels.nf4 import reference
from text_backbone.quantization import nf4

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bnb() -> object:
    return pytest.importorskip("bitsandbytes.functional")


def test_the_map_of_the_scales(bnb) -> None:  # type: ignore[no-untyped-def]
    assert torch.equal(reference.scale_map(CPU), bnb.create_dynamic_map())
    assert torch.equal(reference.levels(CPU), bnb.get_4bit_type("nf4", device="cpu"))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 300).map(lambda n: 2 * n),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    spread=st.sampled_from([1e-4, 0.02, 1.0, 30.0]),
    seed=st.integers(0, 1 << 20),
    zeros=st.booleans(),
)
def test_codes_and_scales_are_those_of_bitsandbytes(
    bnb, rows: int, columns: int, dtype: torch.dtype, spread: float, seed: int, zeros: bool
) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(seed)
    matrix = (torch.randn(rows, columns, generator=generator) * spread).to(dtype)
    if zeros:
        matrix[: rows // 2] = 0
    packed, state = bnb.quantize_4bit(matrix, blocksize=64, compress_statistics=True, quant_type="nf4")
    got = nf4.quantize(matrix)
    assert torch.equal(got.codes, packed.flatten())
    assert torch.equal(got.scales, state.absmax)
    assert torch.equal(got.nested, state.state2.absmax)
    assert got.offset == state.offset


def by_hand(weight: nf4.NF4, shape: tuple[int, int]) -> Tensor:
    """The definition, value by value, in float64."""
    values = torch.empty(shape, dtype=torch.float64).flatten()
    for i in range(values.numel()):
        code = int(weight.codes[i // 2]) >> (0 if i % 2 else 4) & 15
        block = i // 64
        step = float(reference.scale_map(CPU)[int(weight.scales[block])])
        values[i] = reference.LEVELS[code] * (step * float(weight.nested[block // 256]) + float(weight.offset))
    return values.view(shape)


@pytest.mark.parametrize("shape", [(3, 10), (64, 64), (7, 160)])
def test_values_of_codes(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = nf4.quantize(torch.randn(shape))
    got = nf4.dequantize(weight, shape[1], torch.float32)
    torch.testing.assert_close(got.double(), by_hand(weight, shape), rtol=1e-6, atol=1e-6)


def test_the_error_is_that_of_sixteen_quantiles() -> None:
    """Of normally distributed values NF4 loses a known share: the expected squared distance to its levels."""
    torch.manual_seed(0)
    matrix = torch.randn(512, 4096)
    got = nf4.dequantize(nf4.quantize(matrix), 4096, torch.float32)
    share = ((got - matrix).square().sum() / matrix.square().sum()).sqrt().item()
    assert 0.088 < share < 0.094  # 9.1% at blocks of 64, whatever the seed


def test_several_matrices_in_one() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 2, 8, 64)
    store = nf4.empty((3, 2), 8, 64)
    for e in range(3):
        for i in range(2):
            for part, value in zip(store, nf4.quantize(matrices[e, i]), strict=True):
                part[e, i] = value
    got = nf4.dequantize(store, 64, torch.float32)
    assert got.shape == matrices.shape
    assert torch.equal(got[2, 1], nf4.dequantize(nf4.quantize(matrices[2, 1]), 64, torch.float32))


def test_an_odd_number_of_values_is_refused() -> None:
    with pytest.raises(ValueError, match="3 x 5"):
        nf4.quantize(torch.randn(3, 5))
