"""The kinds of picture, each with its renderer, caption and questions. A new kind is one more entry of `KINDS`
and of `KIND_NAMES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vl.nano.mix import Mix
from vl.nano.pictures.canvas import Boxes, pick
from vl.nano.pictures.chart_questions import ask_chart, describe_chart
from vl.nano.pictures.charts import draw_chart
from vl.nano.pictures.counts import draw_counts
from vl.nano.pictures.emoji import ask_emoji, caption_emoji, draw_emoji
from vl.nano.pictures.nothing import ask_nothing, describe_nothing, draw_nothing
from vl.nano.pictures.pages import ask_page, draw_pages
from vl.nano.pictures.questions import Asked, topics
from vl.nano.pictures.relations import ask_scene, short_caption
from vl.nano.pictures.scenes import SceneFacts, caption_scene, draw_scene
from vl.nano.pictures.table_questions import ask_table, describe_table
from vl.nano.pictures.tables import draw_table
from vl.nano.pictures.things import ThingFacts, ask_things, caption_things, draw_things
from vl.nano.pictures.words import caption_text, draw_words

_DESCRIBE = (
    "Describe the image.",
    "What is in this image?",
    "What do you see?",
    "Caption this picture.",
    "Write a caption for this image.",
    "Please tell me what this picture shows.",
    "Tell me what you see.",
    "Describe what you see in this picture.",
    "What does this image show?",
    "What's in the picture?",
    "Can you describe this image for me?",
    "Describe this.",
    "Give a description of the image.",
    "Explain what is shown here.",
    "What is this?",
    "What can you see here?",
    "Describe the picture in detail.",
    "Caption:",
    "Please describe the image.",
    "what is shown in the image",
)
_READ = (
    "Read the text.",
    "What does the text say?",
    "Transcribe the text in this image.",
    "What is written here?",
    "What does it say?",
    "Please read what is written in the picture.",
    "Write down the text that you see.",
    "Copy the text from the image.",
    "OCR this image.",
    "Extract the text.",
    "Which words are printed here?",
    "What text is shown?",
)
_PAGES = (*("page",) * 3, *("receipt",) * 2, *("screen",) * 2, "sign")
_FULL = ("page", "screen")  # those that fill the large canvases of `page_sizes`; others are of any size
_SHORT = topics()["scenes.short"]
_CROWDED = 0.6  # of the scenes that may be odd, those that have more shapes, anywhere
_SHORT_SHARE = 0.15  # of the questions on scenes


class Facts(Protocol):
    """The ground truth of a picture."""

    @property
    def boxes(self) -> Boxes:
        """Where each thing and each printed character is."""


@dataclass(frozen=True)
class Kind:
    """How pictures of one kind are made and talked about.

    Attributes:
        draw: makes a picture, or now and then none, and its facts.
        caption: the canonical description; `metric` is what judges others.
        prompts: phrasings that ask for it.
        default: whether the default prompt asks for it too, half of the time.
        ask: makes a question about the picture, in phrasings of a part (one of `fonts.FACES`).
    """

    draw: Callable[[np.random.Generator, Mix], tuple[Image.Image | None, Any]]
    caption: Callable[[Any], str]
    metric: str
    prompts: tuple[str, ...] = _DESCRIBE
    ask: Callable[[np.random.Generator, Any, str], Asked] | None = None
    default: bool = True


def _words(rng: np.random.Generator, mix: Mix) -> tuple[Image.Image, Facts]:
    return draw_words(rng, mix.sizes, max_words=mix.max_words, fonts=mix.typeface, textures=mix.textures)


def _scene(rng: np.random.Generator, mix: Mix) -> tuple[Image.Image, SceneFacts]:
    if mix.odd and rng.random() < _CROWDED * mix.odd:
        image, facts = _counts(rng, mix)
        return image, facts.in_reading_order()
    return draw_scene(
        rng,
        mix.sizes,
        max_objects=mix.max_objects,
        shapes=mix.shapes,
        colours=mix.colours,
        textures=mix.textures,
        odd=mix.odd,
    )


def _counts(rng: np.random.Generator, mix: Mix) -> tuple[Image.Image, SceneFacts]:
    return draw_counts(rng, mix.sizes, shapes=mix.shapes, colours=mix.colours, textures=mix.textures, odd=mix.odd)


def _emoji(rng: np.random.Generator, mix: Mix) -> tuple[Image.Image, Facts]:
    # With outlines alone, most of the names would silently never come up.
    return draw_emoji(
        rng,
        mix.sizes,
        fonts=mix.fonts,
        require_colour=True,
        textures=mix.textures,
        grounds=mix.grounds,
        photographs=mix.photographs,
    )


def _pages(rng: np.random.Generator, mix: Mix) -> tuple[Image.Image, Facts]:
    kind = pick(rng, _PAGES)
    sizes = mix.page_sizes if mix.page_sizes and kind in _FULL else mix.sizes
    return draw_pages(rng, sizes, fonts=mix.typeface, kinds=(kind,))


def _charts(rng: np.random.Generator, mix: Mix) -> tuple[Image.Image, Facts]:
    return draw_chart(rng, mix.sizes, fonts=mix.typeface)


def _tables(rng: np.random.Generator, mix: Mix) -> tuple[Image.Image, Facts]:
    return draw_table(rng, mix.sizes, fonts=mix.typeface)


def _nothing(rng: np.random.Generator, mix: Mix) -> tuple[Image.Image | None, Facts]:
    return draw_nothing(rng, mix.sizes, photographs=mix.photographs, absent=mix.absent)


def _things(rng: np.random.Generator, mix: Mix) -> tuple[Image.Image, ThingFacts]:
    return draw_things(
        rng, mix.sizes, mix.cutouts, textures=mix.textures, grounds=mix.grounds, photographs=mix.photographs
    )


def _ask_scene(rng: np.random.Generator, facts: SceneFacts, part: str) -> Asked:
    """A question, or now and then the wish for a caption in a few words."""
    if rng.random() < _SHORT_SHARE:
        return Asked(_SHORT.wording(rng, part), short_caption(facts), _SHORT.metric)
    return ask_scene(rng, facts, part)


KINDS: dict[str, Kind] = {
    "words": Kind(_words, caption_text, "ocr", (*_READ, *_DESCRIBE)),
    "scenes": Kind(_scene, caption_scene, "scenes", ask=_ask_scene),
    "counts": Kind(_counts, short_caption, "scenes", (*_SHORT.ask, *_SHORT.more), ask=ask_scene, default=False),
    "emoji": Kind(_emoji, caption_emoji, "caption", ask=ask_emoji),
    "pages": Kind(_pages, caption_text, "ocr", (*_READ, *_DESCRIBE), ask=ask_page),
    "charts": Kind(_charts, describe_chart, "caption", ask=ask_chart),
    "tables": Kind(_tables, describe_table, "caption", ask=ask_table),
    "nothing": Kind(_nothing, describe_nothing, "vqa", (*_DESCRIBE, *_READ), ask=ask_nothing),
    "things": Kind(_things, caption_things, "caption", ask=ask_things),
}
