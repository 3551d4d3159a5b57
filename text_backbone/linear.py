"""Projections without bias, created uninitialised."""

from __future__ import annotations

import torch
from torch import nn


def linear(
    inputs: int, outputs: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> nn.Linear:
    """A bias-free `nn.Linear` with memory but no values: filling weights that a checkpoint will replace is slow.

    `nn.utils.skip_init` would do, but its `empty_like` of meta tensors imports sympy, which takes a third of a second.
    """
    module = nn.Linear(inputs, outputs, bias=False, device="meta")
    module.weight = nn.Parameter(torch.empty(outputs, inputs, device=device, dtype=dtype))
    return module
