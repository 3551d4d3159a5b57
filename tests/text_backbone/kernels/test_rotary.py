from __future__ import annotations

import pytest
import torch
from torch import Tensor

from text_backbone.kernels.rotary import reference

kernels = pytest.importorskip("text_backbone.kernels.rotary.triton", reason="Triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 3e-3}

# tokens, heads, kv_heads, d, r
small = [(1, 1, 1, 2, 2), (5, 4, 2, 12, 8), (3, 3, 1, 12, 4), (40, 2, 2, 8, 8), (7, 4, 1, 64, 32)]
large = [pytest.param(shape, marks=pytest.mark.gpu) for shape in [(70001, 4, 2, 64, 32), (4099, 64, 8, 128, 64)]]


def make(tokens: int, heads: int, kv_heads: int, d: int, r: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(tokens)
    shapes = [(tokens, heads, d), (tokens, kv_heads, d), (tokens, kv_heads, d)]
    q, k, v = (torch.randn(s, generator=generator, device=DEVICE).to(dtype) for s in shapes)
    positions = torch.randint(0, 4_194_304, (tokens,), generator=generator, device=DEVICE)
    return [q, k, v, reference.rotary_table(positions, r, 1e7)]


def assert_near(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert (got.double() - want).norm() <= TOLERANCE[got.dtype] * want.norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", small + large, ids=str)
def test_values_and_gradients(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    q, k, _, table = make(*shape, dtype)
    inputs = [t.requires_grad_() for t in (q, k)]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    got, want = kernels.rotary(*inputs, table), reference.rotary(*wide, table.double())
    grads = [torch.randn_like(t) for t in inputs]
    for mine, true in zip(got, want, strict=True):
        assert mine.dtype == dtype
        assert_near(mine, true)
    torch.autograd.backward(got, grads)
    torch.autograd.backward(want, [g.double() for g in grads])
    for leaf, true in zip(inputs, wide, strict=True):
        assert leaf.grad is not None
        assert_near(leaf.grad, true.grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", small + large, ids=str)
def test_pages(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    q, k, v, table = make(*shape, dtype)
    page_size, pages = 5, shape[0] // 5 + 3
    rows = torch.randperm(pages * page_size, device=DEVICE)[: shape[0]]
    keys, values = torch.full((2, pages, page_size, *k.shape[1:]), 7.0, dtype=dtype, device=DEVICE)
    before = keys.clone(), values.clone()
    with torch.inference_mode():
        got = kernels.rotary_to_pages(q, k, v, table, keys, values, rows)
    for mine, true in zip(got, kernels.rotary(q, k, table), strict=True):
        assert torch.equal(mine, true)
    for pages_now, old, new in zip((keys, values), before, (got[1], v), strict=True):
        want = old.flatten(0, 1).index_copy(0, rows, new)
        assert torch.equal(pages_now.flatten(0, 1), want)  # written where it should be, and nowhere else


def test_slices_of_one_projection() -> None:
    q, k, v, table = make(6, 4, 2, 8, 4, torch.float32)
    joint = torch.cat([x.flatten(1) for x in (q, k, v)], dim=1)
    parts = [x.unflatten(1, (-1, 8)) for x in joint.split([32, 16, 16], dim=1)]
    for mine, true in zip(kernels.rotary(*parts[:2], table), reference.rotary(q, k, table), strict=True):
        torch.testing.assert_close(mine, true)
    turned = kernels.rotary(q.transpose(0, 1).contiguous().transpose(0, 1), k, table)[0]
    torch.testing.assert_close(turned, reference.rotary(q, k, table)[0])


def test_without_gradients_nothing_is_recorded() -> None:
    q, k, _, table = make(3, 2, 1, 8, 4, torch.float32)
    with torch.inference_mode():
        kernels.rotary(q, k, table)
    assert not kernels.rotary(q, k, table)[0].requires_grad


@pytest.mark.parametrize(("tokens", "r"), [(1, 2), (40, 12), (3, 64), pytest.param(70001, 64, marks=pytest.mark.gpu)])
def test_table(tokens: int, r: int) -> None:
    positions = torch.randint(0, 4_194_304, (2, tokens), device=DEVICE)
    for rows in (positions[0], positions.t()[:, 1]):
        got = kernels.rotary_table(rows, r, 1e7)
        torch.testing.assert_close(got, reference.rotary_table(rows, r, 1e7), rtol=0, atol=1e-7)
