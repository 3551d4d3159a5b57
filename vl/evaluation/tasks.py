"""The built-in tasks: pictures from seeds that training never sees. A new task is one more entry of `TASKS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count as naturals
from typing import NamedTuple

from preprocessing import ImageSource, Messages
from preprocessing.chat import Conversation
from vl.errors import ConfigError
from vl.evaluation.examples import Example
from vl.evaluation.metrics import METRICS, read_text
from vl.training.render import DEFAULT_PROMPT, EVALUATION_SEED, Mix, Sample, render

# Apart from EVALUATION_SEED itself, on which training watches its progress.
SEED = EVALUATION_SEED + 1


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
    question, (caption,) = describe(render(SEED, index, mix.only("words")))
    return Question(question, (read_text(caption),))


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("scenes", "coloured shapes, named and placed", "scenes", _scene, (Target("objects", 0.97),)),
        Task("words", "printed words and lines, read", "ocr", _words, (Target("cer", 0.02, most=True),)),
    )
}
