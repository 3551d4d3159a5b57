"""The two-layer MLP between the ViT and the text backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Projector(nn.Module):
    """`linear_2(gelu(linear_1(x)))` with the exact (erf) GELU and biases: `[..., vision]` to `[..., text]`."""

    def __init__(
        self,
        vision_hidden_size: int,
        text_hidden_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_hidden_size, text_hidden_size, device=device, dtype=dtype)
        self.linear_2 = nn.Linear(text_hidden_size, text_hidden_size, device=device, dtype=dtype)

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.linear_2(F.gelu(self.linear_1(features)))
        return projected
