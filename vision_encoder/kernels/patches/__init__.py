"""Tiles cut into rows of patches."""

from __future__ import annotations

from torch import Tensor

from vision_encoder.kernels.device import has_kernels
from vision_encoder.kernels.patches import reference

__all__ = ["unfolded"]


def unfolded(tiles: Tensor, patch: int, centres: Tensor, copies: int) -> Tensor:
    """Patches less `centres`, each `copies` times; see `reference.unfolded`."""
    if not has_kernels(tiles.device):
        return reference.unfolded(tiles, patch, centres, copies)
    from vision_encoder.kernels.patches import triton

    return triton.unfolded(tiles, patch, centres, copies)
