"""Projections without bias, created uninitialised."""

from __future__ import annotations

import torch
from torch import nn


def linear(
    inputs: int, outputs: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> nn.Linear:
    """A bias-free `nn.Linear` with memory but no values: filling weights that a checkpoint will replace is slow."""
    return nn.utils.skip_init(
        nn.Linear,
        inputs,
        outputs,
        bias=False,
        device=device if device is not None else torch.get_default_device(),
        dtype=dtype,
    )
