"""The attention kernel against PyTorch; without a GPU in Triton's interpreter, on small shapes."""

from __future__ import annotations

import pytest
import torch

from vision_encoder.kernels.attention import attention
from vision_encoder.kernels.attention import triton as triton_attention

from .values import DTYPE, LIMIT, distance, random


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
