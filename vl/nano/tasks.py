"""The built-in tasks: pictures from seeds that training never sees. A new task is one more entry of `TASKS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np
from PIL import Image

from vl.evaluation.metrics import parse_quantity, read_text
from vl.evaluation.tasks import Question, Target, Task
from vl.model import DEFAULT_PROMPT
from vl.nano.kinds import KINDS
from vl.nano.mix import Mix
from vl.nano.pictures.canvas import SizeRange
from vl.nano.pictures.chart_questions import ask_chart
from vl.nano.pictures.charts import draw_chart
from vl.nano.pictures.emoji import ask_emoji, draw_emoji
from vl.nano.pictures.nothing import SORTS, ask_nothing, describe_nothing, draw_nothing, draw_photograph
from vl.nano.pictures.pages import ask_page, draw_pages
from vl.nano.pictures.photographs import SHARE, Photographs
from vl.nano.pictures.questions import Asked
from vl.nano.pictures.relations import ask_scene
from vl.nano.pictures.table_questions import ask_table
from vl.nano.pictures.tables import draw_table
from vl.nano.pictures.things import ask_things, draw_things
from vl.nano.render import Sample, render
from vl.training.config import EVALUATION_SEED

# Apart from EVALUATION_SEED itself, on which training watches its progress.
SEED = EVALUATION_SEED + 1
_LOOKS = 256  # tokens of what is looked at, and the answer
# Emoji first: where there is no font for them, the task is left out.
_KNOWN = ("emoji", *(kind for kind in KINDS if kind not in ("emoji", "nothing", "things")))
_PAGE_SIZES = (SizeRange(1008, 2016, 1.0),)
HELD_OUT = Mix(faces="held-out")
"""What tasks draw from unless they are told otherwise."""

Draw = Callable[[int, Mix], Question]


def describe(sample: Sample) -> Question:
    """A sample's picture with the default prompt; the right answer is its caption."""
    return Question(replace(sample, prompt=DEFAULT_PROMPT).question, (sample.answer,))


def _scene(index: int, mix: Mix) -> Question:
    return describe(render(SEED, index, mix.only("scenes")))


def _words(index: int, mix: Mix) -> Question:
    return _transcribe(render(SEED, index, mix.only("words")))


def _about_scene(index: int, mix: Mix) -> Question:
    rng, kind = np.random.default_rng((SEED, index)), KINDS[("scenes", "counts")[index % 2]]
    image, facts = kind.draw(rng, mix)
    return _put(image, ask_scene(rng, facts, mix.faces))


def _odd_scene(index: int, mix: Mix) -> Question:
    return describe(render(SEED, index, replace(mix, odd=1.0).only("scenes")))


def _about_chart(index: int, mix: Mix) -> Question:
    rng = np.random.default_rng((SEED, index))
    image, chart = draw_chart(rng, mix.sizes, fonts=mix.typeface)
    return _measure(image, ask_chart(rng, chart, mix.faces))


def _about_table(index: int, mix: Mix) -> Question:
    rng = np.random.default_rng((SEED, index))
    image, table = draw_table(rng, mix.sizes, fonts=mix.typeface)
    return _measure(image, ask_table(rng, table, mix.faces))


def _about_receipt(index: int, mix: Mix) -> Question:
    """Of a receipt, anything but to read it all."""
    rng = np.random.default_rng((SEED, index))
    image, facts = draw_pages(rng, mix.sizes, fonts=mix.typeface, kinds=("receipt",))
    return _measure(image, next(asked for _ in count() if (asked := ask_page(rng, facts, mix.faces)).metric != "ocr"))


def _off_axis(index: int, mix: Mix) -> Question:
    """A value that no chart prints."""
    rng = np.random.default_rng((SEED, index))
    drawn = (draw_chart(rng, mix.sizes, fonts=mix.typeface) for _ in count())
    image, chart = next((image, chart) for image, chart in drawn if chart.exact and not chart.printed)
    return _measure(image, ask_chart(rng, chart, mix.faces, kinds=("value", "extreme_value")))


def _nothing(index: int, mix: Mix) -> Question:
    rng = np.random.default_rng((SEED, index))
    image, facts = draw_nothing(rng, mix.sizes, sorts=tuple(SORTS))
    return ask_to_describe(image, describe_nothing(facts))


def _photograph(index: int, mix: Mix) -> Question:
    """Of those that training leaves out, whatever the mix is for: it names the folder that training has, too."""
    rng = np.random.default_rng((SEED, index))
    image, facts = draw_photograph(rng, mix.sizes, Photographs(mix.photos, "held-out"))
    return ask_to_describe(image, describe_nothing(facts))


def _no_image(index: int, mix: Mix) -> Question:
    """The default prompt and what is asked of pictures in turn."""
    rng = np.random.default_rng((SEED, index))
    _, facts = draw_nothing(rng, mix.sizes, absent=1.0)
    prompt = ask_nothing(rng, facts, mix.faces).prompt if index % 2 else DEFAULT_PROMPT
    return _question(None, prompt, describe_nothing(facts))


def _known(index: int, mix: Mix) -> Question:
    """A picture of any kind that it knows; of things too where a folder has them."""
    known = (*_KNOWN, "things") if mix.cutouts else _KNOWN
    return describe(render(SEED, index, mix.only(known[index % len(known)])))


def _emoji(grounds: float, index: int, mix: Mix) -> Question:
    rng = np.random.default_rng((SEED, index))
    image, facts = draw_emoji(
        rng,
        mix.sizes,
        max_emoji=1,
        fonts=mix.fonts,
        require_colour=True,
        grounds=grounds,
        photographs=Photographs(mix.photos, mix.faces),
    )
    return _put(image, ask_emoji(rng, facts, mix.faces, kinds=("name",)))


def _thing(index: int, mix: Mix) -> Question:
    rng = np.random.default_rng((SEED, index))
    part = "held-out"  # whatever a recipe trains on
    photographs = Photographs(mix.photos, part)
    image, facts = draw_things(rng, mix.sizes, mix.cutouts, max_things=1, grounds=0.5, photographs=photographs)
    return _put(image, ask_things(rng, facts, part, kinds=("name",)))


def _page(kind: str, two_columns: float, index: int, mix: Mix) -> Question:
    """A page that fills its tiles, whatever sizes the mix has: small print is what large pictures are for."""
    rng = np.random.default_rng((SEED, index))
    image, facts = draw_pages(rng, _PAGE_SIZES, fonts=mix.typeface, kinds=(kind,), two_columns=two_columns)
    return ask_to_describe(image, facts.text)


def _thumbnail(index: int, mix: Mix) -> Question:
    return as_thumbnail(_page("page", 0.0, index, mix))


def as_thumbnail(question: Question) -> Question:
    """The same question about its one image as the thumbnail shows it, and nothing more."""
    (message,) = question.messages
    image, text = message["content"]
    small = image["image"].resize((336, 336), Image.Resampling.BICUBIC)
    return Question([{**message, "content": [{**image, "image": small}, text]}], question.references)


def _transcribe(sample: Sample) -> Question:
    question, (caption,) = describe(sample)
    return Question(question, (read_text(caption),))


def ask_to_describe(image: Image.Image | None, answer: str) -> Question:
    """The default prompt about an image."""
    return _question(image, DEFAULT_PROMPT, answer)


def _put(image: Image.Image | None, asked: Asked) -> Question:
    return _question(image, asked.prompt, asked.reference)


def _measure(image: Image.Image, asked: Asked) -> Question:
    """A question of a task of relaxed accuracy, whose 5% are for values: numbers of things and years are exact."""
    exact = asked.metric in ("counting", "vqa") and parse_quantity(asked.answer) is not None
    return _put(image, asked._replace(within=0.0) if exact else asked)


def _question(image: Image.Image | None, prompt: str, answer: str) -> Question:
    shown = [] if image is None else [{"type": "image", "image": image}]
    return Question([{"role": "user", "content": [*shown, {"type": "text", "text": prompt}]}], (answer,))


def _draw_question(draw: Draw, index: int, mix: Mix | None) -> Question:
    # However pictures are varied to learn from them: scores stay comparable.
    return draw(index, replace(mix, varied=0.0, photo_share=SHARE) if mix else HELD_OUT)


TASKS: dict[str, Task] = {
    task.name: replace(task, draw=partial(_draw_question, task.draw))
    for task in (
        Task("scenes", "coloured shapes, named and placed", "scenes", _scene, (Target("objects", 0.97),)),
        Task("relations", "questions on shapes: how many, where, beside what", "vqa", _about_scene,
             (Target("normalised", 0.95),)),
        Task("odd", "outlines, odd turns, colours of CSS; up to nine shapes that touch", "scenes", _odd_scene,
             (Target("objects", 0.9),)),
        Task("emoji", "one of 600 emoji, named", "vqa", partial(_emoji, 0.0), (Target("normalised", 0.95),)),
        Task("emoji-grounds", "the same on busy grounds", "vqa", partial(_emoji, 1.0), (Target("normalised", 0.85),)),
        Task("words", "printed words and lines, read", "ocr", _words, (Target("cer", 0.02, most=True),)),
        Task("pages", "pages of up to 120 words in small print, read", "ocr", partial(_page, "page", 0.0),
             (Target("cer", 0.05, most=True),), max_new_tokens=640),
        Task("columns", "such pages, in two columns where they have room, read column by column", "ocr",
             partial(_page, "page", 1.0), (Target("cer", 0.08, most=True),), max_new_tokens=640),
        Task("screens", "windows of a program in small print, read", "ocr", partial(_page, "screen", 0.0),
             (Target("cer", 0.08, most=True),), max_new_tokens=640),
        Task("thumbnails", "the same pages, of which only the thumbnail is shown", "ocr", _thumbnail,
             max_new_tokens=640),
        Task("charts", "questions on charts", "chart", _about_chart, (Target("relaxed", 0.85),),
             max_new_tokens=_LOOKS),
        Task("axis", "values read off an axis, to within a twentieth of its range", "chart", _off_axis,
             (Target("relaxed", 0.85),), max_new_tokens=_LOOKS),
        Task("tables", "questions on tables", "table", _about_table, (Target("relaxed", 0.9),),
             max_new_tokens=_LOOKS),
        Task("receipts", "questions on receipts", "chart", _about_receipt, (Target("relaxed", 0.9),),
             max_new_tokens=_LOOKS),
        Task("nothing", "blank, noise, gradients, textures and the like: it says so", "vqa", _nothing,
             (Target("normalised", 0.95),)),
        Task("photographs", "parts of photographs (data.mix.photos of --recipe): it says that it knows nothing of them",
             "vqa", _photograph, (Target("normalised", 0.95),)),
        Task("things", "one of 209 everyday things (data.mix.cutouts of --recipe), named", "vqa", _thing,
             (Target("normalised", 0.7),)),
        Task("no-image", "no image at all: it says so", "vqa", _no_image, (Target("normalised", 0.95),)),
        Task("refusals", "pictures of all kinds that it knows: it does not decline", "refusals", _known,
             (Target("refused", 0.01, most=True),), max_new_tokens=24),
    )
}  # fmt: skip
