from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from text_backbone.kernels.moe import expert_mlp, route


def naive(x: Tensor, gate: Tensor, w13: Tensor, w2: Tensor, top_k: int) -> Tensor:
    """Token by token in float64."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for t, row in enumerate(x.double()):
        p = (gate.double() @ row).softmax(0)
        best = sorted(range(len(p)), key=lambda e: -p[e].item())[:top_k]
        for e in best:
            w1, w3 = w13[e].double()
            out[t] += p[e] / p[best].sum() * (w2[e].double() @ (F.silu(w1 @ row) * (w3 @ row)))
    return out


@settings(deadline=None)
@given(
    tokens=st.integers(1, 12),
    experts=st.integers(1, 6),
    data=st.data(),
    seed=st.integers(0, 2**16),
)
def test_equals_token_by_token(tokens: int, experts: int, data: st.DataObject, seed: int) -> None:
    top_k = data.draw(st.integers(1, experts))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, 6, generator=generator)
    gate = torch.randn(experts, 6, generator=generator)
    w13, w2 = torch.randn(experts, 2, 5, 6, generator=generator), torch.randn(experts, 6, 5, generator=generator)
    weights, chosen, logits = route(x, gate, top_k)
    got = expert_mlp(x, w13, w2, weights, chosen)
    want = naive(x, gate, w13, w2, top_k)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weights.sum(1), torch.ones(tokens))
    torch.testing.assert_close(logits, x @ gate.T)


def test_one_expert_may_take_all_tokens() -> None:
    x, w13, w2 = torch.randn(5, 6), torch.randn(3, 2, 4, 6), torch.randn(3, 6, 4)
    got = expert_mlp(x, w13, w2, torch.ones(5, 1), torch.full((5, 1), 2))
    w1, w3 = w13[2]
    torch.testing.assert_close(got, (F.silu(x @ w1.T) * (x @ w3.T)) @ w2[2].T)


def test_router_is_float32_for_bfloat16_input() -> None:
    x, gate = torch.randn(9, 64).bfloat16(), torch.randn(4, 64).bfloat16()
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            weights, _, logits = route(x, gate, 2)
        assert weights.dtype == logits.dtype == torch.float32
        torch.testing.assert_close(logits, x.float() @ gate.float().T)


def test_gradients_reach_router_and_experts() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    gate = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    w13 = torch.randn(3, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    w2 = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True)

    def moe(x: Tensor, gate: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
        weights, chosen, _ = route(x, gate, 2)
        return expert_mlp(x, w13, w2, weights, chosen)

    assert torch.autograd.gradcheck(moe, (x, gate, w13, w2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_keeps_the_input_dtype(dtype: torch.dtype) -> None:
    x, w13, w2 = (torch.randn(*s).to(dtype) for s in ((3, 6), (2, 2, 4, 6), (2, 6, 4)))
    out = expert_mlp(x, w13, w2, torch.full((3, 2), 0.5), torch.tensor([[0, 1]]).expand(3, 2))
    assert out.dtype == dtype


def test_large_bfloat16_groups_equal_float32() -> None:
    """On CPUs these are padded: more than 256 tokens to some experts, fewer to others, none to two."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(900, 6, generator=generator).bfloat16()
    w13 = torch.randn(4, 2, 5, 6, generator=generator).bfloat16().requires_grad_()
    w2 = torch.randn(4, 6, 5, generator=generator).bfloat16()
    chosen = torch.stack((torch.zeros(900, dtype=torch.int64), 1 + (torch.arange(900) < 200)), dim=1)
    weights = torch.full((900, 2), 0.5)
    got = expert_mlp(x, w13, w2, weights, chosen)
    want = expert_mlp(x.float(), w13.float(), w2.float(), weights, chosen)
    assert (got.float() - want).norm() < 0.01 * want.norm()
    ours, theirs = (torch.autograd.grad(out.float().sum(), w13)[0].float() for out in (got, want))
    assert (ours - theirs).norm() < 0.02 * theirs.norm()
    assert ours[3].abs().max() == 0
