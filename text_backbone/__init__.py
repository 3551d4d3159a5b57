"""The text backbone of MiniMax-VL-01, usable alone as MiniMax-Text-01: embeddings in, logits out.

The names below are imported on first use, so that what reads a config alone does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "allocator": ("CacheFull",),
    "cache": ("HybridCache",),
    "config": ("TextConfig",),
    "init": ("init_weights",),
    "model": ("MiniMaxText",),
    "packed": ("Packed",),
    "slot": ("Slot",),
    "weights": ("released_shapes", "released_tensors", "stored_tensors"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"text_backbone.{module}"), name)
    raise AttributeError(f"module 'text_backbone' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
