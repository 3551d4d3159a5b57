"""Pixels and messages to tensors: images, the dynamic-resolution patcher, chat templates, the tokenizer.

`Processor` ties them together. Nothing here knows a model, and pixels stay uint8.

The names below are imported on first use, so that what reads a config alone does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preprocessing.alpha import Background
    from preprocessing.chat import Conversation, Messages, Tools
    from preprocessing.errors import Error, ImageError, InputError
    from preprocessing.formats import IMAGE_SUFFIXES, has_image_suffix
    from preprocessing.grid import PINPOINTS, Grid
    from preprocessing.images import image_size, load_image
    from preprocessing.lazy import LazyImage, LazyTiles
    from preprocessing.patcher import Patcher
    from preprocessing.processor import Inputs, Processor
    from preprocessing.sources import ImageSource
    from preprocessing.template import DEFAULT_TEMPLATE, ChatTemplate
    from preprocessing.tokenizer import TextStream, Tokenizer
    from preprocessing.tools import ToolCall

__all__ = [
    "DEFAULT_TEMPLATE",
    "IMAGE_SUFFIXES",
    "PINPOINTS",
    "Background",
    "ChatTemplate",
    "Conversation",
    "Error",
    "Grid",
    "ImageError",
    "ImageSource",
    "InputError",
    "Inputs",
    "LazyImage",
    "LazyTiles",
    "Messages",
    "Patcher",
    "Processor",
    "TextStream",
    "Tokenizer",
    "ToolCall",
    "Tools",
    "has_image_suffix",
    "image_size",
    "load_image",
]

_HOMES = {
    "alpha": ("Background",),
    "chat": ("Conversation", "Messages", "Tools"),
    "errors": ("Error", "ImageError", "InputError"),
    "formats": ("IMAGE_SUFFIXES", "has_image_suffix"),
    "grid": ("PINPOINTS", "Grid"),
    "images": ("image_size", "load_image"),
    "lazy": ("LazyImage", "LazyTiles"),
    "patcher": ("Patcher",),
    "processor": ("Inputs", "Processor"),
    "sources": ("ImageSource",),
    "template": ("DEFAULT_TEMPLATE", "ChatTemplate"),
    "tokenizer": ("TextStream", "Tokenizer"),
    "tools": ("ToolCall",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"preprocessing.{module}"), name)
    raise AttributeError(f"module 'preprocessing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
