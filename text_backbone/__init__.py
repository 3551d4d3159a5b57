"""The text backbone of MiniMax-VL-01, usable alone as MiniMax-Text-01: embeddings in, logits out."""

from text_backbone.allocator import CacheFull
from text_backbone.cache import HybridCache
from text_backbone.config import TextConfig
from text_backbone.init import init_weights
from text_backbone.model import MiniMaxText
from text_backbone.packed import Packed
from text_backbone.slot import Slot
from text_backbone.weights import released_shapes, released_tensors, stored_tensors

__all__ = [
    "CacheFull",
    "HybridCache",
    "MiniMaxText",
    "Packed",
    "Slot",
    "TextConfig",
    "init_weights",
    "released_shapes",
    "released_tensors",
    "stored_tensors",
]
