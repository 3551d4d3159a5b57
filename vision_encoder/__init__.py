"""Image tiles to image tokens: a CLIP-layout ViT, a projector, and the packing of tiles into rows."""

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
