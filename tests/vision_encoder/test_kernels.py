"""The kernels against PyTorch; without a GPU in Triton's interpreter, on small shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_encoder.kernels.attention import attention
from vision_encoder.kernels.attention import triton as triton_attention
from vision_encoder.kernels.mlp import activated
from vision_encoder.kernels.mlp import triton as triton_mlp
from vision_encoder.kernels.norm import embedded_norm, shifted
from vision_encoder.kernels.norm import triton as triton_norm
from vision_encoder.kernels.patches import reference as patches_reference
from vision_encoder.kernels.patches import triton as triton_patches

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Products of float32 are rounded to 10 bits on a GPU; the interpreter's of bfloat16 are wrong.
DTYPE, LIMIT = (torch.bfloat16, 4e-3) if torch.cuda.is_available() else (torch.float32, 1e-5)


def random(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)


def distance(out: Tensor, exact: Tensor) -> float:
    return float((out.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(
    ("n", "tokens", "heads", "d"),
    [(1, 5, 2, 16), (2, 65, 1, 32), (1, 145, 3, 16), (2, 128, 2, 64)],  # fewer keys than a tile, a rest of 1, 17, none
)
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_attention(n: int, tokens: int, heads: int, d: int, scale: float) -> None:
    qkv = random(n * tokens, 3 * heads * d, dtype=DTYPE, scale=scale)
    with torch.no_grad():
        exact = attention(qkv.double(), tokens, heads)
        assert distance(triton_attention.attention(qkv, tokens, heads), exact) < LIMIT


def test_gelu() -> None:
    x = torch.cat((torch.linspace(-13, 13, 5000), torch.tensor([0.0, -1e-30, 1e4, -1e4, 1e7, -1e7]))).to(DEVICE)
    exact = F.gelu(x.double())
    out = triton_mlp.gelu_(x.clone()).double()
    small = x.abs() < 100
    assert (out - exact)[small].abs().max() < 2e-5
    assert torch.equal(out[~small], exact[~small])
    # Nor are small values lost where Phi is next to nothing: bfloat16 rounds by up to 4e-3.
    for least, limit in ((-4, 1.2e-4), (-5, 2e-3)):
        shown = (x > least) & (x != 0)
        assert ((out - exact) / exact)[shown].abs().max() < limit


@pytest.mark.parametrize(("rows", "depth", "width"), [(3, 40, 72), (300, 136, 520)])
def test_gelu_product(rows: int, depth: int, width: int) -> None:
    x, weight = random(rows, depth, dtype=DTYPE), random(width, depth, dtype=DTYPE, scale=depth**-0.5)
    bias = random(width, dtype=DTYPE)
    exact = F.gelu(F.linear(x.double(), weight.double(), bias.double()))
    assert distance(triton_mlp.gelu_product(x, weight, bias), exact) < max(LIMIT, 5e-5)


def test_activations_that_have_no_kernel() -> None:
    linear, x = nn.Linear(8, 16, device=DEVICE, dtype=torch.bfloat16), random(5, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        for act in (nn.GELU("tanh"), nn.SiLU()):
            torch.testing.assert_close(activated(x, linear, act), act(linear(x)))


@pytest.mark.parametrize(("n", "patches", "hidden"), [(1, 4, 32), (3, 16, 96)])
def test_embedded_norm(n: int, patches: int, hidden: int) -> None:
    norm = nn.LayerNorm(hidden, device=DEVICE)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    embedded, token, positions = random(n, patches, hidden), random(hidden), random(1 + patches, hidden)
    with torch.no_grad():
        expected = norm(torch.cat((token.expand(n, 1, -1), embedded), 1) + positions).flatten(0, 1)
        ours = triton_norm.embedded_norm(embedded, token, positions, norm.weight, norm.bias, norm.eps)
        for out in (ours, embedded_norm(embedded, token, positions, norm)):
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_shifted() -> None:
    x, shift = random(9, 48), random(48)
    torch.testing.assert_close(triton_norm.shifted(x.clone(), shift), x + shift)
    torch.testing.assert_close(shifted(x.clone(), shift), x + shift)


@pytest.mark.parametrize(("side", "patch", "copies"), [(28, 14, 2), (42, 7, 1)])
def test_unfolded(side: int, patch: int, copies: int) -> None:
    tiles = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, device=DEVICE)
    centres = torch.tensor([120.0, 99.0, 1.0], device=DEVICE).view(3, 1, 1)
    grid = side // patch
    expected = (tiles.float() - centres).view(2, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
    expected = expected.reshape(2 * grid**2, -1).repeat(1, copies)
    for module in (triton_patches, patches_reference):
        assert torch.equal(module.unfolded(tiles, patch, centres, copies), expected)
