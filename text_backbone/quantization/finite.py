"""What can be quantised: one NaN or infinity would make a scale, and with it a block or a row, of the same kind."""

from __future__ import annotations

import torch
from torch import Tensor


def check(stored: Tensor, dtype: torch.dtype | None = None) -> None:
    """Raises ValueError if a value of what is stored is not finite; waits for the device. Codes of integers all are.

    Args:
        dtype: in which floating-point values must be finite; by default their own.
    """
    if not stored.numel() or not stored.is_floating_point() or stored.is_meta:
        return
    if stored.dtype == torch.float8_e4m3fn:  # has no infinity, and NaN where all bits but the sign are set
        wrong = (stored.view(torch.uint8) & 0x7F).max() == 0x7F
    else:
        wrong = ~torch.stack(torch.aminmax(stored)).to(dtype or stored.dtype).isfinite().all()
    if wrong:
        raise ValueError("NaN or infinite values")


def checked(matrix: Tensor) -> Tensor:
    """The values in float32. Raises ValueError if one is not finite there; waits for the device."""
    values = matrix.float()
    # Extremes carry NaN along, and need no temporary the size of the matrix.
    if values.numel() and not torch.stack(torch.aminmax(values)).isfinite().all():
        raise ValueError("NaN or infinite values")
    return values
