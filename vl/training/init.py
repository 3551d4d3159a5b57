"""Initial weights for a model that has to learn to see from nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import text_backbone
import vision_encoder
from vl.model import MiniMaxVL

_POSITION_SCALE = 1.0


@torch.no_grad()
def initialise(model: MiniMaxVL, seed: int) -> None:
    """Fills every parameter of a model on the CPU, so that one process starts on any device as several do.

    Matrices have unit gain (variance 1 / width), so that a narrow model starts with activations as large as a wide
    one's. The ViT's learned positions start from 2-D sines and cosines: from small noise they take thousands of steps
    to become a map, and nothing that names a place or reads a line can be learnt before.
    """
    generator = torch.Generator().manual_seed(seed)
    text_backbone.init_weights(model.language_model, std=model.config.text.hidden_size**-0.5, generator=generator)
    if model.vision is None:
        return
    vision_encoder.init_weights(model.vision, generator=generator)
    config = model.vision.config
    vit: Any = model.vision.vit
    vit.pos_embed[0, 1:] = _POSITION_SCALE * sines_2d(config.patches, config.hidden_size).to(vit.pos_embed)


def sines_2d(side: int, width: int) -> Tensor:
    """Position code of a `side` x `side` grid: [side * side, width], half for the row, half for the column.

    Frequencies fall geometrically from one turn in 2 pi cells to one in 2 pi * 100, fit for maps of tens of cells.
    """
    quarter = width // 4
    frequency = 100.0 ** -(np.arange(quarter) / quarter)
    angle = np.arange(side)[:, None] * frequency  # [side, width / 4]
    code = np.concatenate((np.sin(angle), np.cos(angle)), axis=1)  # [side, width / 2]
    rows, columns = np.repeat(code, side, axis=0), np.tile(code, (side, 1))
    both = np.concatenate((rows, columns), axis=1)
    return torch.from_numpy(np.pad(both, ((0, 0), (0, width - both.shape[1])))).float()
