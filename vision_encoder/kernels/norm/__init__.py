"""The passes over the residual stream, which is kept without the biases that were added to it."""

from __future__ import annotations

from torch import Tensor, nn

from vision_encoder.kernels.device import has_kernels
from vision_encoder.kernels.norm import reference

__all__ = ["embedded_norm", "shifted", "shifted_norm"]


def shifted_norm(x: Tensor, shift: Tensor, norm: nn.LayerNorm) -> Tensor:
    """`norm(x + shift)`, on a GPU in one pass; see `reference.shifted_norm`."""
    if not has_kernels(x.device):
        return reference.shifted_norm(x, shift, norm)
    from vision_encoder.kernels.norm import triton

    return triton.shifted_norm(x, shift, norm.weight, norm.bias, norm.eps)


def embedded_norm(patches: Tensor, token: Tensor, positions: Tensor, norm: nn.LayerNorm) -> Tensor:
    """The stream at its start, on a GPU in one pass; see `reference.embedded_norm`."""
    if not has_kernels(patches.device):
        return reference.embedded_norm(patches, token, positions, norm)
    from vision_encoder.kernels.norm import triton

    return triton.embedded_norm(patches, token, positions, norm.weight, norm.bias, norm.eps)


def shifted(x: Tensor, shift: Tensor) -> Tensor:
    """`x + shift` over `x`; see `reference.shifted`."""
    if not has_kernels(x.device):
        return reference.shifted(x, shift)
    from vision_encoder.kernels.norm import triton

    return triton.shifted(x, shift)
