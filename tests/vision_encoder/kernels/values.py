"""Values for kernels, and how far their results may be from the exact ones."""

from __future__ import annotations

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Products of float32 are rounded to 10 bits on a GPU; the interpreter's of bfloat16 are wrong.
DTYPE, LIMIT = (torch.bfloat16, 4e-3) if torch.cuda.is_available() else (torch.float32, 1e-5)


def random(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)


def distance(out: Tensor, exact: Tensor) -> float:
    return float((out.double() - exact).norm() / exact.norm())
