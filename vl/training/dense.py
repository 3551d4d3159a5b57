"""Dense supervision: every ViT patch learns to name what lies under it.

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
from vl.training.pictures.canvas import COLOURS
from vl.training.pictures.damage import Boxes
from vl.training.pictures.emoji_faces import emoji_list
from vl.training.pictures.scenes import SHAPES

_NAMES = [
    *(f"{colour} {shape}" for colour, shape in product(COLOURS, SHAPES)),
    *(chr(code) for code in range(33, 127)),
    *(emoji.name for emoji in emoji_list()),
]
# An emoji may share its name with a drawn shape ("red circle"), and then its class.
CLASSES: dict[str, int] = {name: index for index, name in enumerate(dict.fromkeys(_NAMES), 1)}
"""What a patch may show; 0 is the background."""

POINTS = 2  # of a patch, along each side, that are named: type of 14 px has two letters to a patch of 14 px
_BACKGROUND = 5  # of the points that show none of the things, which most do and which are soon learnt, every fifth


class PatchHead(nn.Module):
    """ViT features [..., hidden] to class logits [..., POINTS**2, 1 + len(CLASSES)]."""

    def __init__(self, hidden: int, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, device=device)
        self.linear = nn.Linear(hidden, POINTS**2 * (1 + len(CLASSES)), device=device)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(features)).unflatten(-1, (POINTS**2, -1))


def patch_labels(boxes: Boxes, grid: Grid) -> Tensor:
    """The class under each point of every patch, tile by tile: int64 [grid.tiles, patches**2, POINTS**2]."""
    across = grid.patches * POINTS
    centres = (np.arange(across) + 0.5) / across
    thumbnail = _label_map(boxes, centres * grid.width, centres * grid.height)
    left, top, right, bottom = grid.box
    pitch = grid.tile / across
    x = ((np.arange(grid.tile_cols * across) + 0.5) * pitch - left) * (grid.width / (right - left))
    y = ((np.arange(grid.tile_rows * across) + 0.5) * pitch - top) * (grid.height / (bottom - top))
    canvas = _label_map(boxes, x, y)
    labels = np.concatenate((_by_patch(thumbnail, grid.patches), _by_patch(canvas, grid.patches)))
    return torch.from_numpy(labels)


def _by_patch(labels: np.ndarray, patches: int) -> np.ndarray:
    """[rows * patches * POINTS, cols * patches * POINTS] to [rows * cols, patches**2, POINTS**2]."""
    across = patches * POINTS
    rows, cols = labels.shape[0] // across, labels.shape[1] // across
    parts = labels.reshape(rows, patches, POINTS, cols, patches, POINTS).transpose(0, 3, 1, 4, 2, 5)
    return parts.reshape(rows * cols, patches**2, POINTS**2)


def _label_map(boxes: Boxes, x: np.ndarray, y: np.ndarray) -> np.ndarray:
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


def supervised(labels: Tensor) -> Tensor:
    """Which of the points [n] to learn from: int64 [m], those that show a thing and some of the background."""
    return ((labels != 0) | (torch.arange(len(labels)) % _BACKGROUND == 0)).nonzero().flatten()


def dense_loss(logits: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats: logits [..., classes], of which int64 [m] `points` have int64 [m] `labels`."""
    return F.cross_entropy(logits.flatten(0, -2).index_select(0, points).float(), labels)
