"""Norms fused with their neighbours: residual sum before, output gate after."""

from __future__ import annotations

from torch import Tensor

from text_backbone.kernels.device import use_gpu_kernels
from text_backbone.kernels.norms import reference
from text_backbone.kernels.norms.reference import gated_norm_of, row_squares

__all__ = ["divided", "gated_norm", "gated_norm_of", "gated_part", "residual_norm", "rms_norm", "row_squares"]

_MAX_HIDDEN = 16384  # a row has to fit in the registers of one program


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension; see `reference.rms_norm`."""
    if not _fits(x, weight):
        return reference.rms_norm(x, weight, eps)
    from text_backbone.kernels.norms import triton

    return triton.rms_norm(x, weight, eps)


def residual_norm(x: Tensor, y: Tensor, alpha: float, beta: float, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of `alpha * x + beta * y`; see `reference.residual_norm`."""
    if not _fits(x, weight):
        return reference.residual_norm(x, y, alpha, beta, weight, eps)
    from text_backbone.kernels.norms import triton

    return triton.residual_norm(x, y, alpha, beta, weight, eps)


def gated_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`sigmoid(gate) * rms_norm(x)`; see `reference.gated_norm`."""
    if not _fits(x, weight):
        return reference.gated_norm(x, gate, weight, eps)
    from text_backbone.kernels.norms import triton

    return triton.gated_norm(x, gate, weight, eps)


def gated_part(x: Tensor, gate: Tensor, weight: Tensor, rank: int, ranks: int, room: int = 0) -> tuple[Tensor, Tensor]:
    """One rank's columns of `gated_norm`, and the squares that it lacks; see `reference.gated_part`."""
    if not _fits(x, weight):
        return reference.gated_part(x, gate, weight, rank, ranks, room)
    from text_backbone.kernels.norms import triton

    return triton.gated_part(x, gate, weight, rank, ranks, room)


def divided(message: Tensor, tail: int, width: int, eps: float) -> Tensor:
    """Rows over their root mean squares, which the message ends with; see `reference.divided`."""
    if not use_gpu_kernels(message) or message.shape[1] > _MAX_HIDDEN:
        return reference.divided(message, tail, width, eps)
    from text_backbone.kernels.norms import triton

    return triton.divided(message, tail, width, eps)


def _fits(x: Tensor, weight: Tensor) -> bool:
    return use_gpu_kernels(x) and weight.numel() <= _MAX_HIDDEN
