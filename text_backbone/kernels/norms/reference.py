"""RMSNorm and what stands directly before it, in float32 whatever the input (float64 for float64)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension; `x` [..., hidden], `weight` [hidden]."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(wide), weight.shape, weight.to(wide), eps).to(x.dtype)


def residual_norm(x: Tensor, y: Tensor, alpha: float, beta: float, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of `alpha * x + beta * y`: a sub-layer's residual sum and the norm that follows it.

    Args:
        x: [tokens, hidden], the residual branch.
        y: [tokens, hidden], the output of the sub-layer.
        weight: [hidden].

    Returns:
        [tokens, hidden] in `x`'s dtype. The sum itself is not kept: the next residual branch starts from the norm.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    total = torch.add(alpha * x.to(wide), y, alpha=beta)
    return F.rms_norm(total, weight.shape, weight.to(wide), eps).to(x.dtype)


def gated_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`sigmoid(gate) * rms_norm(x)`; `x` and `gate` [tokens, heads * d], `weight` [heads * d]."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return (torch.sigmoid(gate.to(wide)) * F.rms_norm(x.to(wide), weight.shape, weight.to(wide), eps)).to(x.dtype)


def row_squares(x: Tensor) -> Tensor:
    """The sum of squares of each row of `x` [tokens, n]: float32 [tokens], float64 for float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).square().sum(dim=-1)


def gated_norm_of(x: Tensor, gate: Tensor, weight: Tensor, eps: float, squares: Tensor, width: int) -> Tensor:
    """`gated_norm` of some columns: `x` and `gate` [tokens, n], `weight` [n]; `squares` sums all `width` columns'."""
    wide = torch.promote_types(x.dtype, torch.float32)
    inverse = torch.rsqrt(squares.to(wide) / width + eps).unsqueeze(-1)
    return (torch.sigmoid(gate.to(wide)) * (x.to(wide) * inverse * weight.to(wide))).to(x.dtype)
