"""Training losses and the router statistics that go with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_POWERS = {"token": 0.0, "square": -0.5, "sample": -1.0}
REDUCTIONS = tuple(_POWERS)
"""How answers of different lengths share the loss: by their tokens, by the square root of those, or evenly."""


def answer_weights(lengths: Tensor, reduction: str) -> Tensor:
    """What each learnt token weighs: the length of its answer to the power 0 ("token"), -1/2 ("square", the square
    averaging of InternVL 2.5, arXiv:2412.05271, section 4.2) or -1 ("sample"); int64 [m] -> float32 [m].
    """
    return lengths.float() ** _POWERS[reduction]


def token_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats, weighted if so: logits float32 [m, vocab], labels int64 [m], weights [m] -> []."""
    if weights is None:
        return F.cross_entropy(logits, labels)
    # A part of a batch may have no label, and then has no loss.
    total = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    return (F.cross_entropy(logits, labels, reduction="none") * weights).sum() / total


def balance_loss(
    router_logits: Sequence[Tensor],
    top_k: int,
    tokens: int | None = None,
    total: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> tuple[Tensor, Tensor]:
    """Load-balance loss of the Switch Transformer (arXiv:2101.03961, eq. 4), for top-k routing, mean over layers.

    With f_e the fraction of all assignments that go to expert e and P_e its mean probability, a layer's loss is
    `E * sum_e f_e P_e`: 1 when the experts share the tokens evenly, up to E when one takes all.

    Args:
        router_logits: one float32 [tokens, E] per layer.
        top_k: experts per token.
        tokens: of the whole batch, if this is a part of it.
        total: sums counts over the parts.

    Returns:
        The loss [], differentiable through P, and f as [layers, E] without gradient. Of a part of a batch: its summand
        of the whole batch's loss, and the whole batch's f.
    """
    logits = torch.stack(tuple(router_logits))  # [layers, tokens, E]
    experts, tokens = logits.shape[-1], tokens or logits.shape[1]
    probabilities = logits.softmax(-1)
    chosen = logits >= logits.topk(top_k).values[..., -1:]  # [layers, tokens, E]
    load = total(chosen.float().sum(1)) / (tokens * top_k)  # [layers, E]
    return experts * (load * probabilities.sum(1) / tokens).sum(-1).mean(), load


def load_spread(load: Tensor) -> tuple[float, float]:
    """The least and greatest share of any expert in any layer, times the number of experts (1 is even)."""
    scaled = load * load.shape[-1]
    return float(scaled.min()), float(scaled.max())
