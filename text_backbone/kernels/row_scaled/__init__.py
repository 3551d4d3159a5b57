"""Products with matrices of eight bits a value and one scale for every row."""

from __future__ import annotations

from text_backbone.kernels.row_scaled.reference import linear

__all__ = ["linear"]
