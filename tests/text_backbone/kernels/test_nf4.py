"""Products with NF4 matrices on a GPU, against the matrices that the reference writes out, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from text_backbone.kernels.moe import expert_mlp
from text_backbone.kernels.nf4 import linear, reference
from text_backbone.part import Part
from text_backbone.quantization.stored import Quantized

pytest.importorskip("triton")
from text_backbone.kernels.nf4 import triton as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float16
TOLERANCE = {torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float32: 1e-5}
gpu = pytest.mark.gpu


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def stored(*shape: int) -> Quantized:
    return Quantized.of(torch.randn(*shape, device=DEVICE) * shape[-1] ** -0.5, "nf4")


def values(weight: Quantized) -> Tensor:
    weight.dtype = torch.float32
    return weight.read().double()


def part_of(whole: Quantized, *ranges: tuple[int, int]) -> Quantized:
    """A part of one quantised matrix."""
    part = Part((whole.rows, whole.columns), ranges)
    mine = Quantized("nf4", (), *part.shape, device=DEVICE, dtype=whole.dtype, part=part)
    for name, tensor in whole.at()._asdict().items():
        kept = getattr(mine, name)
        kept.copy_(mine.cut(name, tensor).reshape(kept.shape))
    return mine


@pytest.mark.parametrize("dtype", [DTYPE, torch.float32])
@pytest.mark.parametrize("shape", [(5, 64), (3, 7, 192), (2, 70, 128)])
def test_matrices_are_written_out_to_the_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = stored(*shape)
    got = kernels.unpack(kernels.Weight(*weight.at(), 0, shape[-1] // 64), dtype, shape)
    assert torch.equal(got, reference.dequantize(*weight.at(), shape[-1], dtype))


@pytest.mark.parametrize("ranges", [((0, 300), (64, 320)), ((100, 200), (0, 384)), ((100, 300), (128, 192))])
def test_parts_of_a_matrix_are_written_out_as_they_are_in_the_whole(ranges: tuple[tuple[int, int], ...]) -> None:
    whole = stored(300, 384)
    part = part_of(whole, *ranges)
    got = kernels.unpack(kernels.Weight(*part.at(), part.first, part.stride), torch.float32, part.part.shape)
    whole.dtype = torch.float32
    assert torch.equal(got, part.part.of(whole.read()))


def test_arranged_rows_hold_every_value_once() -> None:
    x = torch.arange(2 * 256, device=DEVICE).to(torch.float32).view(2, 256)
    got = kernels.arrange(x)
    assert torch.equal(got.sort(dim=1).values, x)
    assert got[0, 8:16].tolist() == list(range(32, 40))
    assert got[1, 32:40].tolist() == list(range(264, 272))


@gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("rows", "columns"), [(48, 512), (40, 1536), (3, 1024), (96, 320)])
def test_linear(rows: int, columns: int, dtype: torch.dtype) -> None:
    weight = stored(rows, columns)
    for count in (1, 2, 3, 5, 8, 9, 31, 33, 200):
        x = torch.randn(count, columns, device=DEVICE, dtype=dtype)
        got = linear(x, *weight.at())
        assert got.dtype == dtype
        assert error(got, x.double() @ values(weight).T) < TOLERANCE[dtype], count


@gpu
@pytest.mark.parametrize("ranges", [((0, 300), (512, 1024)), ((144, 300), (0, 1536))])
def test_linear_with_a_part_of_a_matrix(ranges: tuple[tuple[int, int], ...]) -> None:
    part = part_of(stored(300, 1536), *ranges)
    for count in (1, 4, 40):
        x = torch.randn(count, part.columns, device=DEVICE, dtype=DTYPE)
        got = linear(x, *part.at(), part.first, part.stride)
        assert error(got, x.double() @ values(part).T) < TOLERANCE[DTYPE]


@gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("hidden", "inner", "count", "top_k"),
    [(512, 1024, 4, 2), (1024, 512, 5, 1), (512, 512, 12, 8), (128, 192, 6, 2), (1024, 576, 3, 2)],
)
def test_experts(hidden: int, inner: int, count: int, top_k: int, dtype: torch.dtype) -> None:
    w13, w2 = stored(count, 2, inner, hidden), stored(count, hidden, inner)
    wide13, wide2 = values(w13), values(w2)
    for tokens in (1, 2, 3, 7, 20, 64, 300):
        x = torch.randn(tokens, hidden, device=DEVICE, dtype=dtype)
        chosen = torch.rand(tokens, count, device=DEVICE).topk(top_k).indices
        if tokens == 20:
            chosen[:] = torch.arange(top_k, device=DEVICE)  # experts without a token
        weights = torch.rand(tokens, top_k, device=DEVICE).softmax(dim=1)
        want = torch.zeros(tokens, hidden, device=DEVICE, dtype=torch.float64)
        for expert in range(count):
            token, place = (chosen == expert).nonzero(as_tuple=True)
            w1, w3 = wide13[expert]
            h = F.silu(x[token].double() @ w1.T) * (x[token].double() @ w3.T)
            want.index_add_(0, token, weights[token, place, None].double() * (h @ wide2[expert].T))
        got = expert_mlp(x, w13, w2, weights, chosen)
        assert error(got, want) < 2 * TOLERANCE[dtype], tokens


@gpu
def test_gradients_reach_what_is_multiplied() -> None:
    weight = stored(64, 512)
    x = torch.randn(3, 512, device=DEVICE, dtype=DTYPE, requires_grad=True)
    linear(x, *weight.at()).sum().backward()
    assert x.grad is not None
    assert error(x.grad, values(weight).sum(dim=0).expand(3, -1)) < 1e-2


@gpu
def test_a_decode_step_is_captured_in_a_graph() -> None:
    w13, w2 = stored(4, 2, 512, 512), stored(4, 512, 512)
    for tokens in (1, 6, 400):
        x = torch.randn(tokens, 512, device=DEVICE, dtype=DTYPE)
        chosen, weights = torch.rand(tokens, 4, device=DEVICE).topk(2).indices, torch.rand(tokens, 2, device=DEVICE)
        want = expert_mlp(x, w13, w2, weights, chosen)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = expert_mlp(x, w13, w2, weights, chosen)
        graph.replay()
        assert torch.equal(got, want)
