"""Partial rotary position embedding."""

from __future__ import annotations

from torch import Tensor

from text_backbone.kernels.device import kernels_on, use_gpu_kernels
from text_backbone.kernels.rotary import reference

__all__ = ["rotary", "rotary_table", "rotary_to_pages"]


def rotary_table(positions: Tensor, rotary_dim: int, theta: float) -> Tensor:
    """Cosines and sines of every rotation; see `reference.rotary_table`."""
    if not kernels_on(positions.device):
        return reference.rotary_table(positions, rotary_dim, theta)
    from text_backbone.kernels.rotary import triton

    return triton.rotary_table(positions, rotary_dim, theta)


def rotary(q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate the first r dimensions of every head of q and k; see `reference.rotary`."""
    if not use_gpu_kernels(q):
        return reference.rotary(q, k, table)
    from text_backbone.kernels.rotary import triton

    return triton.rotary(q, k, table)


def rotary_to_pages(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, keys: Tensor, values: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """`rotary`, with the new keys and values written to cache pages; see `reference.rotary_to_pages`."""
    if not use_gpu_kernels(q):
        return reference.rotary_to_pages(q, k, v, table, keys, values, rows)
    from text_backbone.kernels.rotary import triton

    return triton.rotary_to_pages(q, k, v, table, keys, values, rows)
