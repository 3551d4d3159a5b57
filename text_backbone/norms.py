"""The decoder's norms. Each is a module of its own, so that one that spans several GPUs can take its place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from text_backbone.kernels.norms import gated_norm, residual_norm, rms_norm


class _RMSNorm(nn.Module):
    def __init__(
        self, width: int, eps: float, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width, device=device, dtype=dtype))

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class ResidualNorm(_RMSNorm):
    """RMSNorm of a residual sum, which is only ever used normalised: sum and norm are one pass over memory."""

    def forward(self, x: Tensor, y: Tensor | None = None, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
        """`rms_norm(alpha * x + beta * y)`, and `rms_norm(x)` without y: [T, width], all of them."""
        if y is None:
            return rms_norm(x, self.weight, self.eps)
        return residual_norm(x, y, alpha, beta, self.weight, self.eps)


class GatedNorm(_RMSNorm):
    """RMSNorm over all heads of lightning attention, times its output gate."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """`sigmoid(gate) * rms_norm(x)`: [T, width], all of them."""
        return gated_norm(x, gate, self.weight, self.eps)
