"""Training losses and the router statistics that go with them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats: logits float32 [m, vocab], labels int64 [m] -> []."""
    return F.cross_entropy(logits, labels)


def balance_loss(router_logits: Sequence[Tensor], top_k: int) -> tuple[Tensor, Tensor]:
    """Load-balance loss of the Switch Transformer (arXiv:2101.03961, eq. 4), for top-k routing, mean over layers.

    With f_e the fraction of all assignments that go to expert e and P_e its mean probability, a layer's loss is
    `E * sum_e f_e P_e`: 1 when the experts share the tokens evenly, up to E when one takes all.

    Args:
        router_logits: one float32 [tokens, E] per layer.
        top_k: experts per token.

    Returns:
        The loss [], differentiable through P, and f as [layers, E] without gradient.
    """
    logits = torch.stack(tuple(router_logits))  # [layers, tokens, E]
    experts = logits.shape[-1]
    probabilities = logits.softmax(-1)
    chosen = logits >= logits.topk(top_k).values[..., -1:]  # [layers, tokens, E]
    load = chosen.float().mean(1) / top_k  # [layers, E]
    return experts * (load * probabilities.mean(1)).sum(-1).mean(), load


def load_spread(load: Tensor) -> tuple[float, float]:
    """The least and greatest share of any expert in any layer, times the number of experts (1 is even)."""
    scaled = load * load.shape[-1]
    return float(scaled.min()), float(scaled.max())
