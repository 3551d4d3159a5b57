from __future__ import annotations

import pytest
import torch
from torch import Tensor

from text_backbone.head import OutputHead, logits

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
HALVES = [torch.bfloat16, torch.float16]


def made(
    device: str, dtype: torch.dtype, tokens: int = 5, hidden: int = 96, vocab: int = 20000
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(tokens, hidden, device=device).to(dtype)
    return x, (torch.randn(vocab, hidden, device=device) * hidden**-0.5).to(dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_logits_are_not_rounded_to_sixteen_bits(device: str, dtype: torch.dtype) -> None:
    x, weight = made(device, dtype)
    want = x.double() @ weight.double().T
    got = logits(x, weight)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    rounded = torch.nn.functional.linear(x, weight).double()
    assert (rounded - want).norm() > 100 * (got - want).norm()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_are_those_of_the_product(device: str, dtype: torch.dtype) -> None:
    x, weight = made(device, dtype, vocab=300)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    grad = torch.randn(5, 300, device=device)
    got = torch.autograd.grad(logits(*leaves), leaves, grad)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    want = torch.autograd.grad(wide[0] @ wide[1].T, wide, grad.double())
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).norm() <= 5e-3 * b.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_weights_are_multiplied_as_they_are(dtype: torch.dtype) -> None:
    x, weight = made("cpu", dtype)
    assert torch.equal(logits(x, weight), (x @ weight.T).float())


def test_autocast_multiplies_in_its_type() -> None:
    x, weight = made("cpu", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = logits(x, weight)
    assert torch.equal(got, logits(x.bfloat16(), weight.bfloat16()))


def test_what_training_gets_is_no_view() -> None:
    """FSDP hangs the gathering of the weight for the backward pass on the output, and warns if it is a view."""
    x, weight = made("cpu", torch.bfloat16, vocab=300)
    assert logits(x, weight.requires_grad_())._base is None


def test_any_leading_shape_and_none() -> None:
    head = OutputHead(96, 700, dtype=torch.bfloat16)
    x, head.weight.data = made("cpu", torch.bfloat16, tokens=6, vocab=700)
    assert torch.equal(head(x.view(2, 3, 96)), head(x).view(2, 3, 700))
    assert head(x[:0]).shape == (0, 700)


@pytest.mark.gpu
def test_replays_in_a_graph() -> None:
    x, weight = made("cuda", torch.bfloat16, tokens=1, hidden=1024)
    logits(x, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = logits(x, weight)
    x.normal_()
    graph.replay()
    assert torch.equal(out, logits(x, weight))
