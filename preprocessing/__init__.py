"""Pixels and messages to tensors: images, the dynamic-resolution patcher, chat templates, the tokenizer.

`Processor` ties them together. Nothing here knows a model, and pixels stay uint8.
"""

from __future__ import annotations

from preprocessing.alpha import Background
from preprocessing.chat import Conversation, Messages, Tools
from preprocessing.errors import Error, ImageError, InputError
from preprocessing.formats import IMAGE_SUFFIXES, has_image_suffix
from preprocessing.images import image_size, load_image
from preprocessing.patcher import PINPOINTS, Grid, Patcher
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
