"""The kernel that cuts patches against PyTorch; without a GPU in Triton's interpreter, on small shapes."""

from __future__ import annotations

import pytest
import torch

from vision_encoder.kernels.patches import reference as patches_reference
from vision_encoder.kernels.patches import triton as triton_patches

from .values import DEVICE


@pytest.mark.parametrize(("side", "patch", "copies"), [(28, 14, 2), (42, 7, 1)])
def test_unfolded(side: int, patch: int, copies: int) -> None:
    tiles = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, device=DEVICE)
    centres = torch.tensor([120.0, 99.0, 1.0], device=DEVICE).view(3, 1, 1)
    grid = side // patch
    expected = (tiles.float() - centres).view(2, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
    expected = expected.reshape(2 * grid**2, -1).repeat(1, copies)
    for module in (triton_patches, patches_reference):
        assert torch.equal(module.unfolded(tiles, patch, centres, copies), expected)
