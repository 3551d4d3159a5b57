"""The kinds of picture, each with its renderer, caption and questions. A new kind is one more entry of `KINDS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from vl.training.pictures.asked import Asked
from vl.training.pictures.damage import Boxes
from vl.training.pictures.scenes import caption_scene, draw_scene
from vl.training.pictures.words import caption_words, draw_words

if TYPE_CHECKING:
    from vl.training.render import Mix

_DESCRIBE = (
    "Describe the image.",
    "What is in this image?",
    "What do you see?",
    "Caption this picture.",
    "Write a caption for this image.",
)
_READ = ("Read the text.", "What does the text say?", "Transcribe the text in this image.")


class Facts(Protocol):
    """The ground truth of a picture."""

    @property
    def boxes(self) -> Boxes:
        """Where each thing and each printed character is."""


@dataclass(frozen=True)
class Kind:
    """How pictures of one kind are made and talked about.

    Attributes:
        draw: makes a picture and its facts.
        caption: the canonical description; `metric` is what judges others.
        prompts: phrasings that ask for it, beside the default prompt.
        ask: makes a question about the picture.
        easy: whether a model that knows nothing yet can begin with it.
    """

    draw: Callable[[np.random.Generator, Mix], tuple[Image.Image, Any]]
    caption: Callable[[Any], str]
    metric: str
    prompts: tuple[str, ...] = _DESCRIBE
    ask: Callable[[np.random.Generator, Any], Asked] | None = None
    easy: bool = False


def _scene(rng: np.random.Generator, mix: Mix) -> tuple[Image.Image, Facts]:
    return draw_scene(rng, mix.sizes, max_objects=mix.max_objects, shapes=mix.shapes, colours=mix.colours)


def _words(rng: np.random.Generator, mix: Mix) -> tuple[Image.Image, Facts]:
    return draw_words(rng, mix.sizes, max_words=mix.max_words, fonts=mix.typeface)


# In the order in which the renderer's stream tells them apart: a new kind comes last.
KINDS: dict[str, Kind] = {
    "words": Kind(_words, caption_words, "ocr", (*_READ, *_DESCRIBE), easy=True),
    "scenes": Kind(_scene, caption_scene, "scenes", easy=True),
}
