from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from text_backbone.kernels import norms
from text_backbone.kernels.norms import reference

kernels = pytest.importorskip("text_backbone.kernels.norms.triton", reason="Triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPS = ("rms_norm", "residual_norm", "gated_norm")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 3e-3}

small = [(1, 1), (5, 24), (3, 130), (70, 64)]
large = [
    pytest.param(*shape, marks=pytest.mark.gpu)
    for shape in [(70001, 256), (1, 6144), (4099, 6144), (2050, 8192), (600, 16384), (333, 5000)]
]


def call(module: object, op: str, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    run: Callable[..., Tensor] = getattr(module, op)
    if op == "rms_norm":
        return run(x, weight, 1e-5)
    return run(x, y, 3.5565588200778455, 0.8, weight, 1e-5) if op == "residual_norm" else run(x, y, weight, 1e-6)


def make(rows: int, hidden: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(rows * hidden)
    x, y, grad = torch.randn(3, rows, hidden, generator=generator, device=DEVICE)
    weight = torch.rand(hidden, generator=generator, device=DEVICE) + 0.5
    return [t.to(dtype) for t in (x, y, weight, grad)]


def assert_near(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    error = (got.double() - want).norm() / want.norm().clamp_min(1e-30)
    assert error <= TOLERANCE[got.dtype], float(error)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str
)
@pytest.mark.parametrize(("rows", "hidden"), small + large)
def test_values_and_gradients(op: str, rows: int, hidden: int, dtype: torch.dtype) -> None:
    x, y, weight, grad = make(rows, hidden, dtype)
    inputs = [t.requires_grad_() for t in (x, y, weight)]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    got, want = call(kernels, op, *inputs), call(reference, op, *wide)
    assert got.dtype == dtype
    assert_near(got, want)
    got.backward(grad)
    want.backward(grad.double())
    for mine, true in zip(inputs, wide, strict=True):
        if true.grad is None:
            assert mine.grad is None
        elif hidden > 1 or true is wide[2]:  # a norm over one number has no gradient but its rounding
            assert mine.grad is not None
            assert_near(mine.grad, true.grad)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str
)
@pytest.mark.parametrize("module", [kernels, reference], ids=["kernels", "reference"])
@pytest.mark.parametrize(
    ("rows", "hidden"), [(1, 8), (5, 24), (3, 130), pytest.param(4099, 8192, marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("ranks", [2, 5])
def test_a_norm_over_ranks(module: Any, ranks: int, rows: int, hidden: int, dtype: torch.dtype) -> None:
    """Ranks that have some columns each, and a matrix that they multiply by: as the norm in one process."""
    x, gate, weight, _ = make(rows, hidden, dtype)
    matrix = torch.randn(hidden, 9, device=DEVICE, dtype=torch.float64) / hidden**0.5
    message = torch.zeros(rows, 9 + reference.tail_columns(ranks), device=DEVICE, dtype=torch.float64)
    for rank in range(ranks):
        cut = slice(hidden * rank // ranks, hidden * (rank + 1) // ranks)
        part, sent = module.gated_part(x[:, cut], gate[:, cut], weight[cut], rank, ranks, 9)
        assert part.dtype == sent.dtype == dtype
        assert sent.shape == message.shape
        message += torch.cat((part.double() @ matrix[cut], sent[:, 9:].double()), dim=1)
    # The squares of every rank are exact to twice the dtype's bits, in which they are sent.
    squares = x.double().square().sum(dim=1)
    torch.testing.assert_close(message[:, 9:].sum(dim=1), squares, rtol=1e-5, atol=0)
    got = module.divided(message.to(dtype), message.shape[1] - 9, hidden, 1e-6)
    assert got.dtype == dtype
    want = reference.gated_norm(*(t.double() for t in (x, gate, weight)), 1e-6) @ matrix
    assert_near(got, want)
    squares = sum(reference.row_squares(x[:, c::ranks]) for c in range(ranks))
    first = slice(0, hidden // 2)
    half = reference.gated_norm_of(x[:, first], gate[:, first], weight[first], 1e-6, squares, hidden)
    assert_near(half, reference.gated_norm(*(t.double() for t in (x, gate, weight)), 1e-6)[:, first])


@pytest.mark.parametrize("op", OPS)
def test_without_gradients_nothing_is_recorded(op: str) -> None:
    x, y, weight, _ = make(5, 24, torch.float32)
    with torch.inference_mode():
        got = call(kernels, op, x, y, weight)
    torch.testing.assert_close(got, call(reference, op, x, y, weight))
    assert not call(kernels, op, x, y, weight).requires_grad


@pytest.mark.parametrize("op", OPS)
def test_frozen_weight_and_any_layout(op: str) -> None:
    x, y, weight, grad = make(6, 24, torch.float32)
    leaf = x.t().contiguous().t().requires_grad_()  # columns first
    true = x.clone().requires_grad_()
    call(kernels, op, leaf, y, weight).backward(grad.t().contiguous().t())
    call(reference, op, true, y, weight).backward(grad)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, true.grad, rtol=1e-4, atol=1e-5)
    assert weight.grad is None


def test_leading_dimensions() -> None:
    x, _, weight, _ = make(12, 24, torch.float32)
    got = kernels.rms_norm(x.view(3, 4, 24), weight, 1e-5)
    torch.testing.assert_close(got, reference.rms_norm(x, weight, 1e-5).view(3, 4, 24))


@pytest.mark.gpu
def test_gpu_tensors_take_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(kernels, "_norm", lambda *args: taken.append(args[-1]) or args[0])
    x, y, weight, _ = make(4, 64, torch.bfloat16)
    for op in OPS:
        call(norms, op, x, y, weight)
    assert taken == [kernels.PLAIN, kernels.RESIDUAL, kernels.GATED]
    wide = torch.ones(16385, device=DEVICE)
    torch.testing.assert_close(norms.rms_norm(wide[None], wide, 0.0), wide[None])
    assert len(taken) == 3


@pytest.mark.gpu
def test_each_kernel_waits_for_the_one_before() -> None:
    """Where kernels start before the last one has ended, they may not read what it has yet to write."""
    x, y, weight, _ = make(8, 6144, torch.bfloat16)

    def chain(wait: Callable[[], None]) -> Tensor:
        out = x
        for step in range(100):
            out = call(kernels, "residual_norm", out, y, weight) if step % 3 else out.roll(1, 0)
            wait()
        return out

    want = chain(torch.cuda.synchronize)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = chain(lambda: None)
    for _ in range(3):
        graph.replay()
        assert torch.equal(replayed, want)
        assert torch.equal(chain(lambda: None), want)
