"""What can be quantised: one NaN or infinity would make a scale, and with it a block or a row, of the same kind."""

from __future__ import annotations

import torch
from torch import Tensor


def checked(matrix: Tensor) -> Tensor:
    """The values in float32. Raises ValueError if one is not finite there; waits for the device."""
    values = matrix.float()
    # Extremes carry NaN along, and need no temporary the size of the matrix.
    if values.numel() and not torch.stack(torch.aminmax(values)).isfinite().all():
        raise ValueError("NaN or infinite values")
    return values
