"""Norms as modules: what they compute, and that others take their place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from text_backbone import MiniMaxText, Packed, TextConfig
from text_backbone.norms import GatedNorm, ResidualNorm


def test_residual_norm() -> None:
    norm, (x, y) = ResidualNorm(12, 1e-3), torch.randn(2, 5, 12)
    nn.init.normal_(norm.weight)
    oracle = nn.RMSNorm(12, 1e-3)
    oracle.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(x), oracle(x))
    torch.testing.assert_close(norm(x, y, 3.5, 0.5), oracle(3.5 * x + 0.5 * y))


def test_gated_norm() -> None:
    norm, (x, gate) = GatedNorm(12, 1e-3), torch.randn(2, 5, 12)
    nn.init.normal_(norm.weight)
    oracle = nn.RMSNorm(12, 1e-3)
    oracle.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(x, gate), gate.sigmoid() * oracle(x))


class OfTwoHalves(nn.Module):
    """A gated norm over heads that lie in two places, which tell each other their sums of squares."""

    def __init__(self, norm: GatedNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        halves = x.chunk(2, dim=-1)
        mean = sum(half.square().sum(-1, keepdim=True) for half in halves) / x.shape[-1]
        scale = torch.rsqrt(mean + self.eps)
        normed = torch.cat([half * scale for half in halves], dim=-1)
        return gate.sigmoid() * normed * self.weight


class OfPartialSums(nn.Module):
    """A residual norm that adds up what several places have of `y`, here all of it twice and once less."""

    def __init__(self, norm: ResidualNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, x: Tensor, y: Tensor | None = None, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
        if y is not None:
            x = alpha * x + beta * torch.stack((2 * y, -y)).sum(0)
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


def test_norms_can_be_swapped(config: Callable[..., TextConfig], build: Callable[..., MiniMaxText]) -> None:
    model, ids, packed = build(config()), torch.randint(0, 50, (20,)), Packed.of([13, 7])
    names = list(model.state_dict())
    with torch.no_grad():
        want = model(model.embed(ids), packed)
        swapped = 0
        for name, module in list(model.named_modules()):
            other = {ResidualNorm: OfPartialSums, GatedNorm: OfTwoHalves}.get(type(module))
            if other is not None:
                model.set_submodule(name, other(module))
                swapped += 1
        assert swapped == 2 * len(model.layers) + 1 + sum(kind == 0 for kind in model.config.attn_type_list)
        assert list(model.state_dict()) == names
        torch.testing.assert_close(model(model.embed(ids), packed), want)
        model.norm.weight.zero_()
        assert not model(model.embed(ids), packed).any()
