"""What a built-in task is, and where tasks are found: other packages plug theirs in, see `vl.plugins`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count as naturals
from typing import Any, NamedTuple

from preprocessing import ImageSource, Messages
from preprocessing.chat import Conversation
from vl.errors import ConfigError
from vl.evaluation.examples import Example
from vl.evaluation.metrics import METRICS
from vl.plugins import find_plugins


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

    `draw(index, mix)` makes question `index`, the same each time; `mix` is the plug-in's own and narrows what is drawn,
    None for what the task is meant to be. `metric` is a name of `METRICS`.
    """

    name: str
    help: str
    metric: str
    draw: Callable[[int, Any], Question]
    targets: tuple[Target, ...] = ()
    max_new_tokens: int = 160

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(f"task {self.name!r} has the unknown metric {self.metric!r}")

    def examples(self, mix: Any = None) -> Iterator[Example]:
        """The questions in order, without end."""
        for index in naturals():
            messages, references = self.draw(index, mix)
            pictures = partial(self._pictures, index, mix)
            yield Example(f"{self.name}-{index}", self.name, self.metric, messages, references, pictures)

    def _pictures(self, index: int, mix: Any) -> list[ImageSource]:
        return Conversation.of(self.draw(index, mix).messages).images


@lru_cache(maxsize=1)
def find_tasks() -> dict[str, Task]:
    """Every built-in task by its name; plug-ins are imported when this is first asked.

    Raises:
        ConfigError: if one cannot be imported, or two have a task of the same name.
    """
    found: dict[str, Task] = {}
    for plugin, tasks in find_plugins("vl.tasks").items():
        if twice := sorted(found.keys() & tasks):
            raise ConfigError(f"the plug-in {plugin!r} of vl.tasks has a task {twice[0]!r}, as another has: rename it")
        found |= tasks
    return found


def find_task(name: str) -> Task:
    """The built-in task of a name. Raises ConfigError that lists the names there are."""
    tasks = find_tasks()
    if name not in tasks:
        raise ConfigError(f"unknown task {name!r}: choose from {', '.join(tasks)}")
    return tasks[name]
