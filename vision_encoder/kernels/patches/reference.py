"""Tiles cut into rows of patches in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def unfolded(tiles: Tensor, patch: int, centres: Tensor, copies: int) -> Tensor:
    """Patches less `centres`, each `copies` times: uint8 [n, 3, S, S] to [n * patches**2, copies * 3 * patch**2].

    Args:
        centres: [3, 1, 1], a number per channel, of the dtype of the result.
    """
    n, _, side, _ = tiles.shape
    grid = side // patch
    pixels = tiles.view(n, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)[:, :, :, None]
    out = torch.empty(n, grid, grid, copies, 3, patch, patch, dtype=centres.dtype, device=tiles.device)
    torch.sub(pixels.expand(out.shape), centres, out=out)
    return out.view(n * grid**2, -1)
