"""The first half of the MLP in two steps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def activated(x: Tensor, linear: nn.Linear, act: nn.Module) -> Tensor:
    """`act(linear(x))`: [rows, hidden] to [rows, inner]."""
    return act(F.linear(x, linear.weight, linear.bias))
