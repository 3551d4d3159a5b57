"""What lies under every ViT patch of a drawn picture, for dense supervision (see `vl.training.dense`)."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor

from preprocessing import Grid
from vl.nano.pictures.canvas import COLOURS, Boxes
from vl.nano.pictures.cutouts import thing_list
from vl.nano.pictures.emoji_faces import emoji_list
from vl.nano.pictures.fonts import PRINTED
from vl.nano.pictures.scenes import SHAPES
from vl.training.dense import POINTS

_NAMES = [
    *(f"{colour} {shape}" for colour, shape in product(COLOURS, SHAPES)),
    *PRINTED.replace(" ", ""),
    *(emoji.name for emoji in emoji_list()),
    *(thing.name for thing in thing_list()),
]
# An emoji may share its name with a drawn shape ("red circle"), and then its class.
CLASSES: dict[str, int] = {name: index for index, name in enumerate(dict.fromkeys(_NAMES), 1)}
"""What a patch may show; 0 is the background."""


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
    edges = np.array([box for _, box in boxes]).reshape(-1, 2, 2)  # [boxes, ends, axes]
    across, down = np.searchsorted(x, edges[..., 0]).tolist(), np.searchsorted(y, edges[..., 1]).tolist()
    for (name, _), (x0, x1), (y0, y1) in zip(boxes, across, down, strict=True):
        labels[y0:y1, x0:x1] = CLASSES[name]
    return labels
