"""The built-in tasks: pictures from seeds that training never sees. A new task is one more entry of `TASKS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count as naturals
from typing import NamedTuple

import numpy as np
from PIL import Image

from preprocessing import ImageSource, Messages
from preprocessing.chat import Conversation
from vl.errors import ConfigError
from vl.evaluation.examples import Example
from vl.evaluation.metrics import METRICS, read_text
from vl.training.kinds import KINDS
from vl.training.pictures.canvas import SizeRange
from vl.training.pictures.chart_questions import ask_chart, ask_table
from vl.training.pictures.charts import draw_chart
from vl.training.pictures.emoji import ask_emoji, draw_emoji
from vl.training.pictures.pages import draw_pages
from vl.training.pictures.relations import ask_scene
from vl.training.pictures.tables import draw_table
from vl.training.render import DEFAULT_PROMPT, EVALUATION_SEED, Mix, Sample, render

# Apart from EVALUATION_SEED itself, on which training watches its progress.
SEED = EVALUATION_SEED + 1
_PAGE_SIZES = (SizeRange(1008, 2016, 1.0),)


class Question(NamedTuple):
    """A conversation that ends with the user's turn, and its right answers."""

    messages: Messages
    references: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """What the embedded model should reach: `score` of at least `bound`, or at most where `most` is set."""

    score: str
    bound: float
    most: bool = False

    def met(self, value: float) -> bool:
        return value <= self.bound if self.most else value >= self.bound

    def show(self) -> str:
        return f"{'≤' if self.most else '≥'} {self.bound:.0%}"


@dataclass(frozen=True)
class Task:
    """Endless questions of one kind.

    `draw(index, mix)` makes question `index`, the same each time; `mix` narrows what is drawn, where the task is drawn
    by the training renderer. `metric` is a name of `METRICS`.
    """

    name: str
    help: str
    metric: str
    draw: Callable[[int, Mix], Question]
    targets: tuple[Target, ...] = ()
    max_new_tokens: int = 160

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(f"task {self.name!r} has the unknown metric {self.metric!r}")

    def examples(self, mix: Mix | None = None) -> Iterator[Example]:
        """The questions in order, without end."""
        mix = mix or Mix(faces="held-out")
        for index in naturals():
            messages, references = self.draw(index, mix)
            pictures = partial(self._pictures, index, mix)
            yield Example(f"{self.name}-{index}", self.name, self.metric, messages, references, pictures)

    def _pictures(self, index: int, mix: Mix) -> list[ImageSource]:
        return Conversation.of(self.draw(index, mix).messages).images


def find_task(name: str) -> Task:
    """The built-in task of a name. Raises ConfigError that lists the names there are."""
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}: choose from {', '.join(TASKS)}")
    return TASKS[name]


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
    prompt, answer, _ = ask_scene(rng, facts)
    return _question(image, prompt, answer)


def _about_chart(index: int, mix: Mix) -> Question:
    rng = np.random.default_rng((SEED, index))
    if index % 2:
        image, table = draw_table(rng, mix.sizes, fonts=mix.typeface)
        prompt, answer, _ = ask_table(rng, table)
    else:
        image, chart = draw_chart(rng, mix.sizes, fonts=mix.typeface)
        prompt, answer, _ = ask_chart(rng, chart)
    return _question(image, prompt, answer)


def _emoji(index: int, mix: Mix) -> Question:
    rng = np.random.default_rng((SEED, index))
    image, facts = draw_emoji(rng, mix.sizes, max_emoji=1, fonts=mix.fonts, require_colour=True)
    prompt, answer, _ = ask_emoji(rng, facts, kinds=("name",))
    return _question(image, prompt, answer)


def _page(index: int, mix: Mix) -> Question:
    """A page that fills its tiles, whatever sizes the mix has: small print is what large pictures are for."""
    rng = np.random.default_rng((SEED, index))
    image, facts = draw_pages(rng, _PAGE_SIZES, fonts=mix.typeface, kinds=("page",))
    return ask_to_describe(image, facts.text)


def _thumbnail(index: int, mix: Mix) -> Question:
    return as_thumbnail(_page(index, mix))


def as_thumbnail(question: Question) -> Question:
    """The same question about its one image as the thumbnail shows it, and nothing more."""
    (message,) = question.messages
    image, text = message["content"]
    small = image["image"].resize((336, 336), Image.Resampling.BICUBIC)
    return Question([{**message, "content": [{**image, "image": small}, text]}], question.references)


def _transcribe(sample: Sample) -> Question:
    question, (caption,) = describe(sample)
    return Question(question, (read_text(caption),))


def ask_to_describe(image: Image.Image, answer: str) -> Question:
    """The default prompt about an image."""
    return _question(image, DEFAULT_PROMPT, answer)


def _question(image: Image.Image, prompt: str, answer: str) -> Question:
    content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
    return Question([{"role": "user", "content": content}], (answer,))


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("scenes", "coloured shapes, named and placed", "scenes", _scene, (Target("objects", 0.97),)),
        Task("relations", "questions on shapes: how many, where, beside what", "vqa", _about_scene,
             (Target("normalised", 0.95),)),
        Task("emoji", "one of 600 emoji, named", "vqa", _emoji, (Target("normalised", 0.9),)),
        Task("words", "printed words and lines, read", "ocr", _words, (Target("cer", 0.02, most=True),)),
        Task("pages", "pages of up to 120 words in small print, read", "ocr", _page, (Target("cer", 0.06, most=True),),
             max_new_tokens=640),
        Task("thumbnails", "the same pages, of which only the thumbnail is shown", "ocr", _thumbnail,
             max_new_tokens=640),
        Task("charts", "questions on charts and tables", "chart", _about_chart, (Target("relaxed", 0.9),)),
    )
}  # fmt: skip
