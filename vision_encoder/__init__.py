"""Image tiles to image tokens: a CLIP-layout ViT, a projector, and the packing of tiles into rows.

The names below are imported on first use, so that what reads a config alone does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision_encoder.config import VisionConfig
    from vision_encoder.model import Replay, VisionEncoder
    from vision_encoder.packing import Grid
    from vision_encoder.slot import Slot
    from vision_encoder.weights import init_weights, released_shapes, released_tensors

__all__ = [
    "Grid",
    "Replay",
    "Slot",
    "VisionConfig",
    "VisionEncoder",
    "init_weights",
    "released_shapes",
    "released_tensors",
]

_HOMES = {
    "config": ("VisionConfig",),
    "model": ("Replay", "VisionEncoder"),
    "packing": ("Grid",),
    "slot": ("Slot",),
    "weights": ("init_weights", "released_shapes", "released_tensors"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"vision_encoder.{module}"), name)
    raise AttributeError(f"module 'vision_encoder' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
