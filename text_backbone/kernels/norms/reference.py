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


def gated_part(x: Tensor, gate: Tensor, weight: Tensor, rank: int, ranks: int, room: int = 0) -> tuple[Tensor, Tensor]:
    """The columns that one of several ranks has of a `gated_norm`, not yet divided by the root mean square of all.

    Args:
        x: [tokens, n], this rank's columns.
        gate: the same of the gate.
        weight: [n], the same of the weight.
        rank: which columns these are, of `ranks`.
        room: columns of a message that are left to be written, before the squares.

    Returns:
        `sigmoid(gate) * x * weight` [tokens, n], and a message [tokens, room + c], whose last columns are the sum of
        squares of x's rows in a form that a sum over ranks leaves exact: each has two columns of its own, for the sum
        rounded to `x`'s dtype and for what that leaves, and zeros in the others'. c, `tail_columns`, is a power of two,
        so that rows stay aligned.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    squares = x.to(wide).square().sum(dim=-1)
    message = x.new_empty(len(x), room + tail_columns(ranks))
    tail = message[:, room:].zero_()
    tail[:, 2 * rank] = squares
    tail[:, 2 * rank + 1] = squares - tail[:, 2 * rank].to(wide)
    return (torch.sigmoid(gate.to(wide)) * x.to(wide) * weight.to(wide)).to(x.dtype), message


def tail_columns(ranks: int) -> int:
    """Columns in which `gated_part` sends squares."""
    return max(8, 1 << (2 * ranks - 1).bit_length())


def divided(message: Tensor, tail: int, width: int, eps: float) -> Tensor:
    """Rows over their root mean squares: [tokens, hidden] of a message [tokens, hidden + tail].

    Args:
        message: the sum over ranks of a linear function of what `gated_part` returns first, and behind it of what it
            returns second, of `tail` columns.
        width: columns of all ranks.
    """
    wide = torch.promote_types(message.dtype, torch.float32)
    inverse = torch.rsqrt(message[:, -tail:].to(wide).sum(dim=-1, keepdim=True) / width + eps)
    return (message[:, :-tail].to(wide) * inverse).to(message.dtype)


def row_squares(x: Tensor) -> Tensor:
    """The sum of squares of each row of `x` [tokens, n]: float32 [tokens], float64 for float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).square().sum(dim=-1)


def gated_norm_of(x: Tensor, gate: Tensor, weight: Tensor, eps: float, squares: Tensor, width: int) -> Tensor:
    """`gated_norm` of some columns: `x` and `gate` [tokens, n], `weight` [n]; `squares` sums all `width` columns'."""
    wide = torch.promote_types(x.dtype, torch.float32)
    inverse = torch.rsqrt(squares.to(wide) / width + eps).unsqueeze(-1)
    return (torch.sigmoid(gate.to(wide)) * (x.to(wide) * inverse * weight.to(wide))).to(x.dtype)
