"""What is said about pictures: lists of things, and questions, whose phrasings `questions.toml` has."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import NamedTuple, TypeVar

import numpy as np

from vl.nano.pictures.canvas import pick

_Facts = TypeVar("_Facts")


class Asked(NamedTuple):
    """What the user asks, the right answer, and the metric of `vl.evaluation` by which answers are judged."""

    prompt: str
    answer: str
    metric: str


def listed(names: Sequence[str]) -> str:
    """The names in a row, such as "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


Question = Callable[[np.random.Generator, _Facts], Asked | None]
"""Puts a question about a picture of these facts; None where they do not admit it."""


class Topic(NamedTuple):
    """What can be asked for: the metric, the phrasings with slots in braces, and the requests that may close them."""

    metric: str
    ask: tuple[str, ...]
    end: tuple[str, ...]


@lru_cache(maxsize=1)
def topics() -> dict[str, Topic]:
    """The topics of `questions.toml` by their full names, such as "charts.value"."""
    text = resources.files("vl.nano.pictures").joinpath("questions.toml").read_text("utf-8")
    kinds = tomllib.loads(text)
    ends = kinds.pop("ends")
    return {
        f"{kind}.{name}": Topic(topic["metric"], tuple(topic["ask"]), tuple(ends.get(topic.get("end"), ())))
        for kind, named in kinds.items()
        for name, topic in named.items()
    }


def say(
    rng: np.random.Generator, topic: str, answer: str, *, metric: str | None = None, **slots: str | Sequence[str]
) -> Asked:
    """Asks about a topic in any of its phrasings; what fits a slot is one text or several, of which one is taken.

    `metric` is another one than the topic's.
    """
    return say_any(rng, {topic: answer}, metric=metric, **slots)


def say_any(
    rng: np.random.Generator, answers: Mapping[str, str], *, metric: str | None = None, **slots: str | Sequence[str]
) -> Asked:
    """Asks about one of several topics, for each of which there is an answer; each phrasing is as likely."""
    topic, phrasing = pick(rng, [(topic, phrasing) for topic in answers for phrasing in topics()[topic].ask])
    texts = {slot: text if isinstance(text, str) else pick(rng, text) for slot, text in slots.items()}
    prompt = phrasing.format(**texts)
    usual, _, ends = topics()[topic]
    return Asked(f"{prompt} {pick(rng, ends)}" if ends else prompt, answers[topic], metric or usual)


def ask_one_of(
    rng: np.random.Generator, facts: _Facts, questions: Mapping[str, Question[_Facts]], kinds: Sequence[str]
) -> Asked:
    """Puts a question of one of `kinds`, each as likely of those that the picture admits.

    Raises:
        ValueError: for a kind that is not among the `questions`, or when the picture admits none.
    """
    if unknown := sorted(set(kinds) - questions.keys()):
        raise ValueError(f"no such kind of question: {', '.join(unknown)}; there are {', '.join(questions)}")
    asked = (questions[kinds[int(index)]](rng, facts) for index in rng.permutation(len(kinds)))
    if found := next(filter(None, asked), None):
        return found
    raise ValueError(f"the picture admits no question of {', '.join(kinds)}")
