"""The kernels against the reference in float64: in Triton's interpreter, and at real sizes on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from text_backbone import Packed
from text_backbone.kernels.lightning import reference
from text_backbone.kernels.lightning import triton as kernels

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# Triton's interpreter multiplies bfloat16 wrongly.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if CUDA else [])]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 3e-3}
SLOPES = (0.0, 0.917, 1e-6, 0.03, 3.0, 50.0)


def error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want).norm() / want.norm().clamp(min=1e-30)).item()


def sample(lengths: list[int], heads: int, d: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Packed]:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    # Undecayed sums over 70 000 tokens would pass the largest float16.
    scale = 0.2 if dtype == torch.float16 else 1.0
    qkv = (scale * torch.randn(sum(lengths), heads * 3 * d, generator=generator, device=DEVICE)).to(dtype)
    slopes = torch.tensor([SLOPES[h % len(SLOPES)] for h in range(heads)], device=DEVICE)
    slots = [2 * i + 1 for i in range(len(lengths))][::-1]
    return qkv, slopes, Packed.of(lengths, slots=slots, device=DEVICE)


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SHORTEST", 64)
    monkeypatch.setattr(kernels, "LONGEST", 64)


def check_forward(lengths: list[int], heads: int, d: int, dtype: torch.dtype) -> None:
    qkv, slopes, packed = sample(lengths, heads, d, dtype)
    states = torch.randn(2 * len(lengths) + 1, heads, d, d, device=DEVICE)
    before, wide = states.clone(), states.double()
    want = reference.lightning_attention(qkv.double(), slopes, packed, wide)
    with torch.inference_mode():
        got = kernels.lightning_attention(qkv, slopes, packed, states)
    assert got.dtype == dtype
    assert error(got, want) < TOLERANCE[dtype]
    assert error(states, wide) < TOLERANCE[dtype]
    assert torch.equal(states[::2], before[::2])  # the slots of no sequence
    got = kernels.lightning_attention(qkv, slopes, packed)
    assert error(got, reference.lightning_attention(qkv.double(), slopes, packed)) < TOLERANCE[dtype]


def check_backward(lengths: list[int], heads: int, d: int, dtype: torch.dtype) -> None:
    qkv, slopes, packed = sample(lengths, heads, d, dtype)
    by_out = torch.randn(sum(lengths), heads * d, device=DEVICE).to(dtype)
    exact, ours = qkv.double().requires_grad_(), qkv.requires_grad_()
    (want,) = torch.autograd.grad(reference.lightning_attention(exact, slopes, packed), exact, by_out.double())
    out = kernels.lightning_attention(ours, slopes, packed)
    (got,) = torch.autograd.grad(out, ours, by_out)
    assert got.dtype == dtype
    assert error(got, want) < 1.5 * TOLERANCE[dtype]
    three, wanted = got.unflatten(-1, (heads, 3, d)), want.unflatten(-1, (heads, 3, d))
    for part in range(3):
        assert error(three[:, :, part], wanted[:, :, part]) < 2 * TOLERANCE[dtype]


SMALL = [([5, 64, 1, 150], 32), ([3, 130], 64), ([70, 1], 128)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lengths", "d"), SMALL)
def test_forward_of_single_segments(lengths: list[int], d: int, dtype: torch.dtype) -> None:
    check_forward(lengths, 2, d, dtype)


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lengths", "d"), SMALL)
def test_forward_of_chains(lengths: list[int], d: int, dtype: torch.dtype) -> None:
    check_forward(lengths, 2, d, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lengths", "d"), SMALL)
def test_backward_of_single_segments(lengths: list[int], d: int, dtype: torch.dtype) -> None:
    check_backward(lengths, 2, d, dtype)


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lengths", "d"), SMALL)
def test_backward_of_chains(lengths: list[int], d: int, dtype: torch.dtype) -> None:
    check_backward(lengths, 2, d, dtype)


LARGE = [
    ([1000] * 20 + [10_000, 1, 63, 64, 65, 1025, 4097], 4, 64),
    ([70_000, 1, 300], 2, 128),
    ([2048] * 3, 16, 128),
    ([20_000, 7], 6, 32),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lengths", "heads", "d"), LARGE)
def test_real_sizes(lengths: list[int], heads: int, d: int, dtype: torch.dtype) -> None:
    check_forward(lengths, heads, d, dtype)
    check_backward(lengths, heads, d, dtype)


@pytest.mark.gpu
def test_offsets_beyond_31_bits() -> None:
    heads, d = 16, 128
    tokens = 2**31 // (heads * 3 * d) + 5000
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of GPU memory")
    qkv = torch.randn(tokens, heads * 3 * d, device=DEVICE, dtype=torch.bfloat16)
    slopes = torch.full((heads,), 0.05, device=DEVICE)  # nothing older than a few hundred tokens is felt
    out = kernels.lightning_attention(qkv, slopes, Packed.of([tokens], device=DEVICE))
    tail = 4096
    want = reference.lightning_attention(qkv[-tail:].double(), slopes, Packed.of([tail], device=DEVICE))
    assert error(out[-2048:], want[-2048:]) < TOLERANCE[torch.bfloat16]
