from __future__ import annotations

import pytest
import torch
from torch import Tensor

from text_backbone.kernels.moe import reference

pytest.importorskip("triton")
from text_backbone.kernels.moe import backward, decode, grouped
from text_backbone.kernels.moe import triton as kernels
from text_backbone.kernels.moe.configs import GEMV_DOWN, GEMV_UP, Gemv, Tile
from text_backbone.kernels.moe.sort import group

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Every type and shape is compiled anew on a GPU, and tl.dot is wrong for bfloat16 in the interpreter
DTYPES = [torch.float32, torch.bfloat16 if DEVICE == "cuda" else torch.float16]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 3e-3}
gpu = pytest.mark.gpu


def randn(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device=DEVICE) * scale).to(dtype)


def error(got: Tensor, want: Tensor) -> float:
    scale = want.double().norm()
    return ((got.double() - want.double()).norm() / scale if scale else got.double().norm()).item()


def layer(tokens: int, hidden: int, inner: int, count: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x, gate, w13, w2 with activations of order one."""
    return (
        randn(tokens, hidden, dtype=dtype),
        randn(count, hidden, dtype=dtype, scale=hidden**-0.5),
        randn(count, 2, inner, hidden, dtype=dtype, scale=hidden**-0.5),
        randn(count, hidden, inner, dtype=dtype, scale=inner**-0.5),
    )


SMALL = [(1, 32, 16, 4, 2), (7, 24, 20, 3, 1), (36, 48, 40, 5, 2), (50, 40, 24, 4, 3)]
LARGE = [(1, 256, 160, 4, 2), (20000, 256, 160, 4, 2)]
CASES = [  # dtype, tokens, hidden, inner, experts, top_k
    *((dtype, *shape) for dtype in DTYPES for shape in SMALL if DEVICE == "cpu"),
    *(pytest.param(dtype, *shape, marks=gpu) for dtype in DTYPES for shape in LARGE),
    pytest.param(torch.bfloat16, 300, 200, 72, 12, 8, marks=gpu),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("tokens", "count", "top_k"), [(1, 1, 1), (9, 4, 2), (600, 5, 2), (3000, 200, 1), (40, 32, 8)])
def test_sort_is_stable_and_complete(tokens: int, count: int, top_k: int) -> None:
    experts = torch.randint(0, count, (tokens, top_k), device=DEVICE)
    order, place, bounds = group(experts, count)
    want = experts.flatten().sort(stable=True)
    torch.testing.assert_close(order.long(), want.indices)
    torch.testing.assert_close(place.long(), want.indices.argsort())
    torch.testing.assert_close(bounds.long().diff(), experts.flatten().bincount(minlength=count))
    assert bounds[0] == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "hidden", "count", "top_k"),
    [
        (1, 32, 4, 2),
        (70, 48, 5, 3),
        (3, 1024, 40, 8),
        (1, 600, 1, 1),
        pytest.param(98304, 256, 4, 2, marks=gpu),
        pytest.param(1, 6144, 32, 2, marks=gpu),
        pytest.param(64, 6144, 32, 2, marks=gpu),
        pytest.param(5000, 6144, 256, 8, marks=gpu),
    ],
)
def test_router(tokens: int, hidden: int, count: int, top_k: int, dtype: torch.dtype) -> None:
    x, gate = randn(tokens, hidden, dtype=dtype), randn(count, hidden, dtype=dtype, scale=hidden**-0.5)
    weights, experts, logits = kernels.route(x, gate, top_k)
    want_weights, want_experts, want = reference.route(x.double(), gate.double(), top_k)
    close = 1e-4 if dtype == torch.bfloat16 else 1e-5  # tensor cores sum in a little less than float32
    torch.testing.assert_close(logits.double(), want, rtol=close, atol=2 * close)
    assert weights.dtype == logits.dtype == torch.float32
    assert experts.dtype == torch.int64
    # Two experts within rounding of each other may change places
    torch.testing.assert_close(want.gather(1, experts), want.gather(1, want_experts), rtol=0, atol=1e-3)
    torch.testing.assert_close(weights.double(), want_weights, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("use_weights", "use_logits"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(
    ("tokens", "hidden", "count", "top_k"),
    [(1, 32, 4, 2), (150, 48, 5, 3), (20, 200, 3, 1), pytest.param(70000, 256, 4, 2, marks=gpu)],
)
def test_router_gradients(
    tokens: int, hidden: int, count: int, top_k: int, use_weights: bool, use_logits: bool, dtype: torch.dtype
) -> None:
    x, gate = randn(tokens, hidden, dtype=dtype), randn(count, hidden, dtype=dtype, scale=hidden**-0.5)
    dweights, dlogits = randn(tokens, top_k), randn(tokens, count)
    _, experts, _ = kernels.route(x, gate, top_k)

    def loss(weights: Tensor, logits: Tensor) -> Tensor:
        return use_weights * (weights * dweights).sum() + use_logits * (logits * dlogits).sum()

    leaves = [t.clone().requires_grad_() for t in (x, gate)]
    weights, _, logits = kernels.route(*leaves, top_k)
    parts = [(weights * dweights).sum()] * use_weights + [(logits * dlogits).sum()] * use_logits
    got = torch.autograd.grad(sum(parts[1:], parts[0]), leaves)
    wide = [t.double().requires_grad_() for t in (x, gate)]
    logits = wide[0] @ wide[1].T
    want = torch.autograd.grad(loss(logits.gather(1, experts).softmax(1), logits), wide)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        assert error(a, b) <= TOLERANCE[dtype]


TILES = [
    Tile(32, 64, 32, 4, 2),
    Tile(32, 64, 32, 4, 2, short=True, tma=True),
    Tile(16, 64, 32, 4, 3, group=1, swap=True),
    Tile(32, 64, 32, 4, 3, group=2, swap=True, short=True, tma=True),
]


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("tokens", "hidden", "inner", "count"), [(1, 64, 32, 3), (90, 72, 40, 4)])
def test_every_kind_of_tile(tile: Tile, tokens: int, hidden: int, inner: int, count: int) -> None:
    dtype = torch.float16
    x, _, w13, w2 = layer(tokens, hidden, inner, count, dtype)
    experts = torch.randint(0, count, (tokens, 2), device=DEVICE)
    groups = group(experts, count)
    h, ab = grouped.up(x, w13, groups, 2, tile, save=True)
    y = grouped.linear(h, w2, groups, tile)
    chosen = experts.flatten()[groups.order.long()]
    rows = x.double()[groups.order.long() // 2]
    want = torch.einsum("rh,rcih->rci", rows, w13.double()[chosen])
    assert error(ab, want) <= TOLERANCE[dtype]
    assert error(h, torch.nn.functional.silu(want[:, 0]) * want[:, 1]) <= TOLERANCE[dtype]
    assert error(y, torch.einsum("ri,rhi->rh", h.double(), w2.double()[chosen])) <= TOLERANCE[dtype]


@pytest.mark.parametrize("tma", [False, True])
@pytest.mark.parametrize(("tokens", "hidden", "inner", "count"), [(1, 64, 32, 3), (90, 72, 40, 4), (50, 32, 40, 33)])
def test_every_kind_of_training_tile(tma: bool, tokens: int, hidden: int, inner: int, count: int) -> None:
    tile, dtype = Tile(32, 64, 32, 4, 2, tma=tma), torch.float16
    x, _, w13, w2 = layer(tokens, hidden, inner, count, dtype)
    experts = torch.randint(0, count, (tokens, 2), device=DEVICE)
    weights, dout, groups = randn(tokens, 2).softmax(1), randn(tokens, hidden, dtype=dtype), group(experts, count)
    _, ab = grouped.up(x, w13, groups, 2, tile, save=True)
    dab, wh, partial = backward.dh(dout, w2, ab, weights, groups, tile)
    dw13, dw2 = backward.weight_gradients(x, dout, dab, wh, groups, 2, tile)
    rows = grouped.linear(dab.flatten(1), w13, groups, tile, transposed=True)
    wide = [t.double().requires_grad_() for t in (x, w13, w2, weights)]
    reference.expert_mlp(*wide, experts).backward(dout.double())
    dx, dweights = grouped.combine(rows, weights, groups, weighted=False, partial=partial)
    for name, got, leaf in zip(("x", "w13", "w2", "weights"), (dx, dw13, dw2, dweights), wide, strict=True):
        assert leaf.grad is not None
        assert error(got, leaf.grad) <= 2 * TOLERANCE[dtype], name


def test_weights_that_begin_anywhere() -> None:
    """The tensor memory accelerator reads from 16-byte boundaries only."""
    x, _, w13, w2 = layer(20, 32, 16, 3, torch.float16)
    shifted = [torch.empty(w.numel() + 1, dtype=w.dtype, device=DEVICE)[1:].view_as(w).copy_(w) for w in (w13, w2)]
    groups, tile = group(torch.randint(0, 3, (20, 2), device=DEVICE), 3), Tile(16, 32, 32, 4, 2, tma=True)
    h, got = (grouped.up(x, w, groups, 2, tile, save=False)[0] for w in (w13, shifted[0]))
    assert torch.equal(got, h)
    y, got = (grouped.linear(h, w, groups, tile) for w in (w2, shifted[1]))
    assert torch.equal(got, y)


FULL = pytest.param(3, 6144, 9216, 4, 2, Gemv(4, 1024, 4, 8), marks=gpu)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "hidden", "inner", "count", "top_k", "tile"),
    [(1, 64, 40, 4, 2, GEMV_UP), (3, 72, 33, 4, 2, Gemv(8, 32, 4, 8)), (1, 20, 24, 9, 8, GEMV_DOWN), FULL],
)
def test_few_tokens(
    tokens: int, hidden: int, inner: int, count: int, top_k: int, tile: Gemv, dtype: torch.dtype
) -> None:
    x, _, w13, w2 = layer(tokens, hidden, inner, count, dtype)
    experts, weights = torch.rand(tokens, count, device=DEVICE).topk(top_k).indices, randn(tokens, top_k).softmax(1)
    out = decode.down(decode.up(x, w13, experts, tile), w2, weights, experts, tile)
    want = reference.expert_mlp(x.double(), w13.double(), w2.double(), weights.double(), experts)
    assert out.dtype == dtype
    assert error(out, want) <= TOLERANCE[dtype]


def test_no_tokens() -> None:
    x, gate, w13, w2 = layer(0, 16, 16, 3, torch.float32)
    weights, experts, logits = kernels.route(x, gate, 2)
    assert (weights.shape, experts.shape, logits.shape) == ((0, 2), (0, 2), (0, 3))
    assert kernels.expert_mlp(x, w13, w2, weights, experts).shape == x.shape


def choice(kind: str, tokens: int, count: int, top_k: int) -> Tensor:
    """experts [tokens, top_k]: at random, all on one expert, or only on every third one."""
    if kind == "one":
        return torch.full((tokens, top_k), count - 1, device=DEVICE)
    step = 3 if kind == "some" else 1
    return torch.randint(0, -(-count // step), (tokens, top_k), device=DEVICE) * step


@pytest.mark.parametrize("kind", ["all", "one", "some"])
@pytest.mark.parametrize(("dtype", "tokens", "hidden", "inner", "count", "top_k"), CASES)
def test_experts_and_their_gradients(
    dtype: torch.dtype, tokens: int, hidden: int, inner: int, count: int, top_k: int, kind: str
) -> None:
    x, _, w13, w2 = layer(tokens, hidden, inner, count, dtype)
    experts, dout = choice(kind, tokens, count, top_k), randn(tokens, hidden, dtype=dtype)
    weights = randn(tokens, top_k).softmax(1)
    leaves = [t.clone().requires_grad_() for t in (x, w13, w2, weights)]
    out = kernels.expert_mlp(*leaves, experts)
    wide = [t.double().requires_grad_() for t in (x, w13, w2, weights)]
    want = reference.expert_mlp(*wide, experts)
    assert out.dtype == dtype
    assert error(out, want) <= TOLERANCE[dtype]
    with torch.inference_mode():
        assert error(kernels.expert_mlp(x, w13, w2, weights, experts), want) <= TOLERANCE[dtype]
    out.backward(dout)
    want.backward(dout.double())
    for name, a, b in zip(("x", "w13", "w2", "weights"), leaves, wide, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert a.grad.dtype == a.dtype
        off = (a.grad.double() - b.grad).norm()
        # A weight's gradient is a dot product of two vectors, and where it comes out small its rounding does not.
        usual = (dout.double().norm(dim=1) * want.norm(dim=1)).norm() / hidden**0.5 if name == "weights" else 0.0
        assert off <= 2 * TOLERANCE[dtype] * max(b.grad.norm(), usual), name


@gpu
@pytest.mark.parametrize(
    ("tokens", "hidden", "inner", "count"),
    [
        *((tokens, 512, 768, 8) for tokens in (1, 5, 40, 150, 1000)),
        *((tokens, 6144, 9216, 4) for tokens in (1, 33, 700)),
    ],
)
def test_inference_at_every_size(tokens: int, hidden: int, inner: int, count: int) -> None:
    x, gate, w13, w2 = layer(tokens, hidden, inner, count, torch.bfloat16)
    weights, experts, _ = kernels.route(x, gate, 2)
    want = reference.expert_mlp(x.double(), w13.double(), w2.double(), weights.double(), experts)
    assert error(kernels.expert_mlp(x, w13, w2, weights, experts), want) <= TOLERANCE[torch.bfloat16]


@gpu
@pytest.mark.parametrize("tokens", [1, 8])
def test_replays_in_a_graph_with_other_tokens(tokens: int) -> None:
    x, gate, w13, w2 = layer(tokens, 512, 768, 8, torch.bfloat16)

    def moe() -> Tensor:
        weights, experts, _ = kernels.route(x, gate, 2)
        return kernels.expert_mlp(x, w13, w2, weights, experts)

    moe()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = moe()
    for _ in range(3):
        x.normal_()
        graph.replay()
        assert torch.equal(out, moe())
