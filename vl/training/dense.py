"""Dense supervision: every ViT patch learns to name what lies under it.

A caption is a weak teacher for a vision tower that starts from nothing: a few nats per picture, through the whole
decoder. But whoever draws pictures knows the answer for each patch. A linear head on the tower's features is trained on
it beside the caption loss, and is no part of the saved model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_encoder import VisionEncoder

POINTS = 2  # of a patch, along each side, that are named: type of 14 px has two letters to a patch of 14 px
_BACKGROUND = 5  # of the points that show none of the things, which most do and which are soon learnt, every fifth


class PatchHead(nn.Module):
    """ViT features [..., hidden] to class logits [..., POINTS**2, classes], class 0 being the background."""

    def __init__(self, hidden: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.linear = nn.Linear(hidden, POINTS**2 * classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(features)).unflatten(-1, (POINTS**2, -1))


@contextmanager
def captured_features(vision: VisionEncoder) -> Iterator[list[Tensor]]:
    """Collects the ViT's patch features [tiles, patches**2, hidden] of every slice of tiles that is encoded inside."""
    features: list[Tensor] = []
    vit: Any = vision.vit  # its final norm is the identity, and sees the whole output
    handle = vit.norm.register_forward_hook(lambda module, inputs, output: features.append(output[:, 1:]))
    try:
        yield features
    finally:
        handle.remove()


def supervised(labels: Tensor) -> Tensor:
    """Which of the points [n] to learn from: int64 [m], those that show a thing and some of the background."""
    return ((labels != 0) | (torch.arange(len(labels)) % _BACKGROUND == 0)).nonzero().flatten()


def dense_loss(logits: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats: logits [..., classes], of which int64 [m] `points` have int64 [m] `labels`."""
    return F.cross_entropy(logits.flatten(0, -2).index_select(0, points).float(), labels)
