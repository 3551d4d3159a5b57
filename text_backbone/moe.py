"""The mixture-of-experts sub-layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from text_backbone.config import TextConfig
from text_backbone.kernels.moe import expert_mlp, route
from text_backbone.linear import linear


class Experts(nn.Module):
    """The gated MLPs of all experts, stacked: `w13` [E, 2, I, hidden] (w1 then w3) and `w2` [E, hidden, I].

    Nothing else of the model reads the weights, so a module with the same `forward` may store them in any other way.
    """

    def __init__(
        self, config: TextConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        experts, hidden, inner = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.w13 = nn.Parameter(torch.empty(experts, 2, inner, hidden, device=device, dtype=dtype))
        self.w2 = nn.Parameter(torch.empty(experts, hidden, inner, device=device, dtype=dtype))

    def forward(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """x [T, hidden], weights float32 [T, k] and experts int64 [T, k] of `route` -> [T, hidden]."""
        return expert_mlp(x, self.w13, self.w2, weights, experts)


class SparseMoE(nn.Module):
    """Each token goes to the `num_experts_per_tok` experts that its router prefers."""

    def __init__(
        self, config: TextConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.gate = linear(config.hidden_size, config.num_local_experts, device=device, dtype=dtype)
        self.experts = Experts(config, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, hidden] -> [T, hidden] and the router logits float32 [T, E]."""
        weights, experts, logits = route(x, self.gate.weight, self.top_k)
        return self.experts(x, weights, experts), logits
