"""The kernels of GELU against PyTorch; without a GPU in Triton's interpreter, on small shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vision_encoder.kernels.mlp import activated
from vision_encoder.kernels.mlp import triton as triton_mlp

from .values import DEVICE, DTYPE, LIMIT, distance, random


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
