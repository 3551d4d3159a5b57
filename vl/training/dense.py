"""Dense supervision: every ViT patch learns to name what lies under its centre.

A caption is a weak teacher for a vision tower that starts from nothing: a few nats per picture, through the whole
decoder. But the pictures are drawn here, so the answer is known for each patch. A linear head on the tower's features
is trained on it beside the caption loss, and is no part of the saved model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preprocessing import Grid
from vision_encoder import VisionEncoder
from vl.training.canvas import COLOURS, Box
from vl.training.scenes import SHAPES, SceneFacts
from vl.training.words import WordsFacts

_NAMES = [f"{colour} {shape}" for colour, shape in product(COLOURS, SHAPES)] + [chr(code) for code in range(33, 127)]
CLASSES: dict[str, int] = {name: index for index, name in enumerate(_NAMES, 1)}
"""What a patch may show; 0 is the background."""

_BACKGROUND_WEIGHT = 0.2  # most patches show none of the things, and are soon learnt


class PatchHead(nn.Module):
    """ViT features [..., hidden] to class logits [..., 1 + len(CLASSES)]."""

    def __init__(self, hidden: int, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, device=device)
        self.linear = nn.Linear(hidden, 1 + len(CLASSES), device=device)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(features))


def patch_labels(facts: SceneFacts | WordsFacts, grid: Grid) -> Tensor:
    """The class under the centre of every patch: int64 [grid.tiles, patches**2], in the order of the tiles."""
    patches = grid.patches
    centres = (np.arange(patches) + 0.5) / patches
    thumbnail = _label_map(facts.boxes, centres * grid.width, centres * grid.height)
    width, height = grid.resolution
    scale = min(width / grid.width, height / grid.height)
    pitch = grid.tile / patches
    x = ((np.arange(grid.tile_cols * patches) + 0.5) * pitch - (width - scale * grid.width) / 2) / scale
    y = ((np.arange(grid.tile_rows * patches) + 0.5) * pitch - (height - scale * grid.height) / 2) / scale
    canvas = _label_map(facts.boxes, x, y).reshape(grid.tile_rows, patches, grid.tile_cols, patches)
    tiles = canvas.transpose(0, 2, 1, 3).reshape(-1, patches**2)
    return torch.from_numpy(np.concatenate((thumbnail.reshape(1, -1), tiles)))


def _label_map(boxes: tuple[tuple[str, Box], ...], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """int64 [len(y), len(x)]: the class of the box that holds each point; both axes ascend."""
    labels = np.zeros((len(y), len(x)), np.int64)
    for name, (left, top, right, bottom) in boxes:
        (x0, x1), (y0, y1) = np.searchsorted(x, (left, right)), np.searchsorted(y, (top, bottom))
        labels[y0:y1, x0:x1] = CLASSES[name]
    return labels


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


def dense_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Weighted mean cross-entropy in nats: logits [..., classes], labels int64 [...] -> []."""
    weights = torch.where(labels == 0, _BACKGROUND_WEIGHT, 1.0).flatten()
    losses = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), reduction="none")
    return (weights * losses).sum() / weights.sum()
