"""How often the output head's best token is the right one, and that of logits rounded to 16 bits."""

from __future__ import annotations

import torch

from text_backbone.head import logits
from vl.bench.ops import head


def agreement(device: torch.device, *, tokens: int = 4096, small: bool = False) -> tuple[float, float]:
    """Of random bfloat16 states, the shares whose best token is that of float64 sums: by our head and a rounded one.

    Args:
        device: where to compute.
        tokens: how many.
        small: with a small vocabulary, and not the released one.
    """
    torch.manual_seed(0)
    x, weight = head.make(tokens, *head.shape(small=small), device, torch.bfloat16)
    right = torch.zeros(2, dtype=torch.int64)
    for some in x.split(256):
        ours, rounded = logits(some, weight), head.rounded(some, weight)
        # Whatever may be best is summed again in float64.
        near = ours.topk(64, dim=1).indices  # [tokens, 64]
        exact = torch.einsum("th,tch->tc", some.double(), weight[near].double())
        best = near.gather(1, exact.argmax(dim=1, keepdim=True))[:, 0]
        right += torch.stack([(found.argmax(dim=1) == best).sum() for found in (ours, rounded)]).cpu()
    return right[0].item() / tokens, right[1].item() / tokens
