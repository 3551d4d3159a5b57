"""The kernels around the first LayerNorm against PyTorch; without a GPU in Triton's interpreter, on small shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vision_encoder.kernels.norm import embedded_norm, shifted
from vision_encoder.kernels.norm import triton as triton_norm

from .values import DEVICE, random


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
