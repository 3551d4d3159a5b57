"""The built-in data: every picture, its conversation and its ground truth as a function of (seed, index)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from vl.model import DEFAULT_PROMPT
from vl.training.pictures.canvas import COLOURS, SizeRange
from vl.training.pictures.scenes import MAX_OBJECTS, SHAPES, SceneFacts, caption_scene, draw_scene
from vl.training.pictures.words import MAX_WORDS, WordsFacts, caption_words, draw_words

# Seeds from here on are for evaluation; training refuses them, so that no held-out picture is ever trained on.
EVALUATION_SEED = 1 << 31

_CAPTION_PROMPTS = (
    "Describe the image.",
    "What is in this image?",
    "What do you see?",
    "Caption this picture.",
    "Write a caption for this image.",
)
_READING_PROMPTS = ("Read the text.", "What does the text say?", "Transcribe the text in this image.")

SMALL = (SizeRange(64, 336, 1.0),)
MIXED = (SizeRange(64, 336, 0.8), SizeRange(337, 1008, 0.16), SizeRange(1009, 2016, 0.04))


@dataclass(frozen=True)
class Mix:
    """What to draw: the share of printed words (the rest are scenes) and the canvas sizes.

    The other fields narrow the content: fewer objects, shapes, colours or words make an easier task.
    """

    words: float = 0.5
    sizes: tuple[SizeRange, ...] = MIXED
    max_objects: int = MAX_OBJECTS
    max_words: int = MAX_WORDS
    shapes: tuple[str, ...] = tuple(SHAPES)
    colours: tuple[str, ...] = tuple(COLOURS)
    fonts: str | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of picture that it draws: "scenes", "words" or both."""
        return ("scenes",) * (self.words < 1) + ("words",) * (self.words > 0)

    def only(self, kind: str) -> Mix:
        """The same mix with nothing but "scenes" or "words"."""
        return replace(self, words={"scenes": 0.0, "words": 1.0}[kind])

    def easy(self) -> Mix:
        """The same mix with at most two objects or one word to a picture."""
        return replace(self, max_objects=min(2, self.max_objects), max_words=1)

    def within(self, sizes: tuple[SizeRange, ...]) -> Mix:
        """The same mix on other canvas sizes."""
        return replace(self, sizes=sizes)


@dataclass(frozen=True)
class Sample:
    """A picture with the caption that a perfect model would give it, and the facts the caption follows from."""

    image: Image.Image  # RGB
    prompt: str
    caption: str
    facts: SceneFacts | WordsFacts

    @property
    def kind(self) -> str:
        return "scenes" if isinstance(self.facts, SceneFacts) else "words"

    @property
    def question(self) -> list[dict[str, Any]]:
        """The user's turn, image first."""
        return [
            {
                "role": "user",
                "content": [{"type": "image", "image": self.image}, {"type": "text", "text": self.prompt}],
            }
        ]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The whole conversation: the user's turn and the answer to learn."""
        return [*self.question, {"role": "assistant", "content": [{"type": "text", "text": self.caption}]}]


def render(seed: int, index: int, mix: Mix | None = None) -> Sample:
    """Renders sample `index` of the stream `seed`: the same arguments (and fonts) give the same sample anywhere."""
    mix = mix or Mix()
    rng = np.random.default_rng((seed, index))
    if rng.random() < mix.words:
        image, facts = draw_words(rng, mix.sizes, max_words=mix.max_words, fonts=mix.fonts)
        return Sample(image, _prompt(rng, _READING_PROMPTS), caption_words(facts), facts)
    image, scene = draw_scene(rng, mix.sizes, max_objects=mix.max_objects, shapes=mix.shapes, colours=mix.colours)
    return Sample(image, _prompt(rng, _CAPTION_PROMPTS), caption_scene(scene), scene)


def _prompt(rng: np.random.Generator, special: Sequence[str]) -> str:
    """The default prompt half of the time, else one of the general or the special phrasings."""
    if rng.random() < 0.5:
        return DEFAULT_PROMPT
    choices = tuple(dict.fromkeys((*special, *_CAPTION_PROMPTS)))
    return choices[int(rng.integers(len(choices)))]
