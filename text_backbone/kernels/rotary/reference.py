"""Partial rotary position embedding, and the write of rotated keys into their cache pages."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(positions: Tensor, rotary_dim: int, theta: float) -> Tensor:
    """Cosines and sines of every rotation, shared by all layers and heads.

    The angles are float64: in float32 the rounding of a frequency, times a position of 4 million, comes to 0.2 rad.

    Args:
        positions: int64 [T].
        rotary_dim: r, the leading dimensions of a head that rotate; frequency i is `theta ** (-2i / r)`.

    Returns:
        float32 [T, r], the r/2 cosines and then the r/2 sines.
    """
    # Apple's MPS has no float64, so the angles are taken on the host there.
    home = positions.device
    work = torch.device("cpu") if home.type == "mps" else home
    angles = positions.to(work, torch.float64)[:, None] * frequencies(rotary_dim, theta, work)  # [T, r/2]
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(torch.float32).to(home)


def frequencies(rotary_dim: int, theta: float, device: torch.device) -> Tensor:
    """How far a position turns each pair, in radians: float64 [r/2]."""
    return theta ** -(torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=device) / rotary_dim)


def rotary(q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate the first r dimensions of every head: pairs are (i, i + r/2), the rest of the head passes unchanged.

    Args:
        q: [T, heads, d].
        k: [T, kv_heads, d].
        table: float32 [T, r] of `rotary_table`.

    Returns:
        Rotated q and k, shapes and dtypes unchanged.
    """
    cos, sin = table[:, None].chunk(2, dim=-1)  # [T, 1, r/2] each
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def rotary_to_pages(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, keys: Tensor, values: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """`rotary`, with rotated keys and the values written to cache pages in place.

    Args:
        q: as in `rotary`.
        k: as in `rotary`.
        v: [T, kv_heads, d].
        table: as in `rotary`.
        keys: [pages, page_size, kv_heads, d].
        values: as `keys`.
        rows: int64 [T], row of each token in the pages flattened to [pages * page_size].

    Returns:
        Rotated q and k.
    """
    q, k = rotary(q, k, table)
    keys.flatten(0, 1).index_copy_(0, rows, k.to(keys.dtype))
    values.flatten(0, 1).index_copy_(0, rows, v.to(values.dtype))
    return q, k


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    a, b, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
    return torch.cat(((a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype), rest), dim=-1)
