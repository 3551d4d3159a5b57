"""int8 and FP8: the kernels against products in float64 of what the codes and scales stand for."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from text_backbone.kernels.moe import expert_mlp, reference
from text_backbone.kernels.row_scaled import reference as dense_reference
from text_backbone.quantization import Quantized

pytest.importorskip("triton")
from text_backbone.kernels.moe import decode, grouped
from text_backbone.kernels.moe.configs import Gemv, Tile
from text_backbone.kernels.moe.operands import Scales
from text_backbone.kernels.moe.sort import group
from text_backbone.kernels.row_scaled import dense, rounding
from text_backbone.kernels.row_scaled.configs import Vector

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIXTEEN = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # tl.dot is wrong for bfloat16 in the interpreter
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 3e-3}
gpu = pytest.mark.gpu
FORMAT = pytest.mark.parametrize("form", ["int8", "fp8"])
TILES = [
    Tile(32, 64, 32, 4, 2),
    Tile(32, 64, 32, 4, 2, short=True, tma=True),
    Tile(16, 64, 32, 4, 3, group=1, swap=True),
    Tile(32, 64, 32, 4, 3, group=2, swap=True, short=True, tma=True),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def randn(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device=DEVICE) * scale).to(dtype)


def error(got: Tensor, want: Tensor) -> float:
    scale = want.double().norm()
    return ((got.double() - want.double()).norm() / scale if scale else got.double().norm()).item()


class Codes(NamedTuple):
    """What a kernel takes, and what it stands for in float64."""

    codes: Tensor
    scales: Tensor
    values: Tensor


def stored(form: str, *shape: int) -> Codes:
    """Matrices of rows whose magnitudes differ; every seventh is zero."""
    values = randn(*shape, scale=shape[-1] ** -0.5) * torch.rand(*shape[:-1], 1, device=DEVICE)
    values.view(-1, shape[-1])[::7] = 0
    codes, scales = Quantized.of(values, form).at()
    return Codes(codes, scales, dense_reference.values(codes, scales, torch.float64))


def activations(form: str, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """What is multiplied, its rows' scales, and what the two stand for in float64."""
    if form == "int8":
        return x, None, x.double()
    codes, scales = dense_reference.row_codes(x)
    return codes, scales, dense_reference.values(codes, scales, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, SIXTEEN])
@pytest.mark.parametrize(
    ("rows", "columns"),
    [(1, 1), (5, 48), (3, 600), (2, 20000), *(pytest.param(n, k, marks=gpu) for n, k in ((4096, 6144), (777, 9216)))],
)
def test_rounding_is_the_references_bit_for_bit(rows: int, columns: int, dtype: torch.dtype) -> None:
    x = randn(rows, columns, dtype=dtype) * torch.logspace(-6, 4, rows, device=DEVICE)[:, None].to(dtype)
    x[-1] = 0
    codes, scales = rounding.row_codes(x)
    want_codes, want_scales = dense_reference.row_codes(x)
    assert torch.equal(scales, want_scales)
    same = codes.view(torch.uint8) == want_codes.view(torch.uint8)
    # Triton's interpreter loses the carry where rounding ends at the next power of two.
    assert same.all() if DEVICE == "cuda" else same.double().mean() > 0.9


def test_a_row_that_is_not_finite_spoils_no_other() -> None:
    x = randn(4, 100)
    x[1, 3], x[2, 99] = math.inf, math.nan
    codes, scales = rounding.row_codes(x)
    got = dense_reference.values(codes, scales, torch.float32)
    assert got[1:3].isnan().all()
    assert got[::3].isfinite().all()


@FORMAT
@pytest.mark.parametrize("dtype", [torch.float32, SIXTEEN])
@pytest.mark.parametrize(
    ("tokens", "rows", "columns", "tile"),
    [(1, 40, 64, Vector(4, 32, 4, 4)), (3, 33, 72, Vector(8, 64, 4, 4)), (2, 5, 600, Vector(1, 1024, 4, 4))],
)
def test_few_rows(form: str, tokens: int, rows: int, columns: int, tile: Vector, dtype: torch.dtype) -> None:
    weight = stored(form, rows, columns)
    x, scales, exact = activations(form, randn(tokens, columns, dtype=dtype))
    got = dense.vector(x, weight.codes, Scales(weight.scales, scales, dtype), tile)
    assert got.dtype == dtype
    assert error(got, exact @ weight.values.T) <= TOLERANCE[dtype]


@FORMAT
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("tokens", "rows", "columns"), [(1, 64, 32), (90, 40, 72), (33, 130, 64)])
def test_every_kind_of_tile(form: str, tile: Tile, tokens: int, rows: int, columns: int) -> None:
    weight = stored(form, rows, columns)
    x, scales, exact = activations(form, randn(tokens, columns, dtype=SIXTEEN))
    got = dense.matrix(x, weight.codes, Scales(weight.scales, scales, SIXTEEN), tile)
    assert got.dtype == SIXTEEN
    assert error(got, exact @ weight.values.T) <= TOLERANCE[SIXTEEN]


@pytest.mark.parametrize("tile", [Tile(128, 128, 64, 8, 3, swap=True, tma=True), Tile(128, 128, 64, 8, 3)])
def test_every_pair_of_codes_is_converted_exactly(tile: Tile) -> None:
    """Times the identity; also -128, which quantising never gives. On a GPU the first tile reads int8 in pairs."""
    byte = torch.arange(-128, 128, device=DEVICE, dtype=torch.int8)
    codes = torch.cartesian_prod(byte, byte).view(512, 256)
    identity = torch.eye(256, device=DEVICE, dtype=SIXTEEN)
    got = dense.matrix(identity, codes, Scales(torch.ones(512, device=DEVICE)), tile)
    assert torch.equal(got, codes.T.to(SIXTEEN))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 200), (3, 5000)])
def test_unpacking_equals_the_reference(rows: int, columns: int) -> None:
    weight = stored("int8", rows, columns)
    want = dense_reference.values(weight.codes, weight.scales, SIXTEEN)
    assert torch.equal(dense.unpack(weight.codes, weight.scales, SIXTEEN), want)


@FORMAT
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("tokens", "hidden", "inner", "count"), [(1, 64, 32, 3), (90, 72, 40, 4)])
def test_every_kind_of_expert_tile(form: str, tile: Tile, tokens: int, hidden: int, inner: int, count: int) -> None:
    w13, w2 = stored(form, count, 2, inner, hidden), stored(form, count, hidden, inner)
    experts = torch.randint(0, count, (tokens, 2), device=DEVICE)
    groups = group(experts, count)
    chosen = experts.flatten()[groups.order.long()]
    x, scales, exact = activations(form, randn(tokens, hidden, dtype=SIXTEEN))
    h, _ = grouped.up(x, w13.codes, groups, 2, tile, False, Scales(w13.scales, scales, SIXTEEN))
    a, b = torch.einsum("rh,rcih->cri", exact[groups.order.long() // 2], w13.values[chosen])
    assert error(h, F.silu(a) * b) <= TOLERANCE[SIXTEEN]
    rows, scales, exact = activations(form, h)
    y = grouped.linear(rows, w2.codes, groups, tile, scales=Scales(w2.scales, scales, SIXTEEN))
    assert error(y, torch.einsum("ri,rhi->rh", exact, w2.values[chosen])) <= TOLERANCE[SIXTEEN]


@FORMAT
@pytest.mark.parametrize("dtype", [torch.float32, SIXTEEN])
@pytest.mark.parametrize(
    ("tokens", "hidden", "inner", "count", "top_k", "tile"),
    [
        (1, 64, 40, 4, 2, Gemv(4, 64, 4, 8)),
        (3, 72, 33, 4, 2, Gemv(8, 32, 4, 8)),
        (1, 20, 24, 9, 8, Gemv(1, 1024, 8, 8)),
        pytest.param(3, 6144, 9216, 4, 2, Gemv(4, 1024, 4, 8), marks=gpu),
    ],
)
def test_few_tokens(
    form: str, tokens: int, hidden: int, inner: int, count: int, top_k: int, tile: Gemv, dtype: torch.dtype
) -> None:
    w13, w2 = stored(form, count, 2, inner, hidden), stored(form, count, hidden, inner)
    experts, weights = torch.rand(tokens, count, device=DEVICE).topk(top_k).indices, randn(tokens, top_k).softmax(1)
    x, scales, exact = activations(form, randn(tokens, hidden, dtype=dtype))
    h = decode.up(x, w13.codes, experts, tile, Scales(w13.scales, scales, dtype))
    a, b = torch.einsum("th,tkcih->ctki", exact, w13.values[experts])
    assert error(h.view(tokens, top_k, inner), F.silu(a) * b) <= TOLERANCE[dtype]
    rows, scales, exact = activations(form, h)
    out = decode.down(rows, w2.codes, weights, experts, tile, Scales(w2.scales, scales, dtype))
    parts = torch.einsum("tki,tkhi->tkh", exact.view(tokens, top_k, inner), w2.values[experts])
    assert out.dtype == dtype
    assert error(out, (parts * weights[..., None]).sum(1)) <= TOLERANCE[dtype]


TOKENS = (1, 2, 7, 8, 64, 300, 4096)
ROUNDED = {"int8": 3e-3, "fp8": 4e-3}  # Hopper's tensor cores keep 14 bits of the sums of products of e4m3
# What is next to the middle of two codes may be rounded either way, which the layer's second product sees.
WHOLE = {"int8": 3e-3, "fp8": 2e-2}


@gpu
@FORMAT
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("rows", "columns"), [(1024, 6144), (6144, 8192), (200, 1000), (33, 72)])
def test_a_projection_at_every_size(form: str, rows: int, columns: int, tokens: int) -> None:
    weight = Quantized.of(randn(rows, columns, dtype=torch.bfloat16, scale=columns**-0.5), form)
    x = randn(tokens, columns, dtype=torch.bfloat16)
    got = weight.linear((), x)
    _, _, exact = activations(form, x)
    assert got.dtype == x.dtype
    assert error(got, exact @ dense_reference.values(*weight.at(), torch.float64).T) <= ROUNDED[form]


@gpu
@FORMAT
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize(("hidden", "inner", "count"), [(512, 768, 8), (200, 72, 12), (6144, 9216, 4)])
def test_a_layer_at_every_size(form: str, hidden: int, inner: int, count: int, few: bool, tokens: int) -> None:
    """`few`: two experts get all tokens, one of them twenty times as many."""
    w13 = Quantized.of(randn(count, 2, inner, hidden, dtype=torch.bfloat16, scale=hidden**-0.5), form)
    w2 = Quantized.of(randn(count, hidden, inner, dtype=torch.bfloat16, scale=inner**-0.5), form)
    x, weights = randn(tokens, hidden, dtype=torch.bfloat16), randn(tokens, 2).softmax(1)
    experts = torch.rand(tokens, count, device=DEVICE).topk(2).indices
    if few:
        experts = (torch.rand(tokens, 2, device=DEVICE) < 0.05).long() * (count - 1)
    with torch.inference_mode():
        got = expert_mlp(x, w13, w2, weights, experts)
        want = reference.expert_mlp(x.double(), w13, w2, weights.double(), experts)
    assert got.dtype == x.dtype
    assert error(got, want) <= WHOLE[form]


@gpu
@FORMAT
@pytest.mark.parametrize("tokens", [1, 8, 64])
def test_replays_in_a_graph_with_other_tokens(form: str, tokens: int) -> None:
    w13 = Quantized.of(randn(8, 2, 768, 512, dtype=torch.bfloat16, scale=512**-0.5), form)
    w2 = Quantized.of(randn(8, 512, 768, dtype=torch.bfloat16, scale=768**-0.5), form)
    dense_weight = Quantized.of(randn(512, 512, dtype=torch.bfloat16, scale=512**-0.5), form)
    x, weights = randn(tokens, 512, dtype=torch.bfloat16), randn(tokens, 2).softmax(1)
    experts = torch.rand(tokens, 8, device=DEVICE).topk(2).indices

    def step() -> Tensor:
        return expert_mlp(dense_weight.linear((), x), w13, w2, weights, experts)

    step()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for _ in range(3):
        x.normal_()
        experts.copy_(torch.rand(tokens, 8, device=DEVICE).topk(2).indices)
        graph.replay()
        assert torch.equal(out, step())


@gpu
@FORMAT
def test_gradients_take_the_references_way(form: str) -> None:
    w13 = Quantized.of(randn(4, 2, 48, 64, scale=64**-0.5), form)
    w2 = Quantized.of(randn(4, 64, 48, scale=48**-0.5), form)
    x, weights = randn(9, 64), randn(9, 2).softmax(1)
    experts = torch.rand(9, 4, device=DEVICE).topk(2).indices
    got = [t.clone().requires_grad_() for t in (x, weights)]
    want = [t.clone().requires_grad_() for t in (x, weights)]
    expert_mlp(got[0], w13, w2, got[1], experts).square().sum().backward()
    reference.expert_mlp(want[0], w13, w2, want[1], experts).square().sum().backward()
    for a, b in zip(got, want, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad, b.grad)
