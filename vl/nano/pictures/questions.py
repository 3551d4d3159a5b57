"""What is said about pictures: lists of things, and questions, whose phrasings `questions.toml` has."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.random import Generator

from vl.nano.pictures.canvas import pick

Facts = TypeVar("Facts")


class Asked(NamedTuple):
    """What the user asks, the right answer, and the metric of `vl.evaluation` by which answers are judged."""

    prompt: str
    answer: str
    metric: str


def listed(names: Sequence[str]) -> str:
    """The names in a row, such as "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


class Topic(NamedTuple):
    """What can be asked for: the metric, the phrasings with slots in braces, and the requests that may close them."""

    metric: str
    ask: tuple[str, ...]
    end: tuple[str, ...]


@lru_cache(maxsize=1)
def _tables() -> dict[str, dict[str, Any]]:
    text = resources.files("vl.nano.pictures").joinpath("questions.toml").read_text("utf-8")
    return tomllib.loads(text)


def sorts(kind: str) -> dict[str, float]:
    """The sorts of question about a kind of picture, and how often each is asked relative to the others."""
    return _tables()["sorts"][kind]


@lru_cache(maxsize=1)
def topics() -> dict[str, Topic]:
    """The topics of `questions.toml` by their full names, such as "charts.value"."""
    tables, found = _tables(), {}
    for kind in tables["sorts"]:
        for name, topic in tables[kind].items():
            ends = tables["ends"][topic["end"]] if "end" in topic else ()
            found[f"{kind}.{name}"] = Topic(topic["metric"], tuple(topic["ask"]), tuple(ends))
    return found


class Questions(Generic[Facts]):
    """Puts questions about a picture: a method for each sort that `questions.toml` lists under its `kind`.

    Methods give None where the picture does not admit such a question.
    """

    kind: ClassVar[str]

    def __init__(self, rng: Generator, facts: Facts) -> None:
        self.rng, self.facts = rng, facts

    def ask(self, kinds: Sequence[str] = ()) -> Asked:
        """Puts a question of one of these sorts, or of any, as often as their shares say where all are admitted.

        Raises:
            ValueError: for a sort that does not exist, or when the picture admits none of them.
        """
        known = sorts(self.kind)
        if unknown := sorted(set(kinds) - known.keys()):
            raise ValueError(f"no such kind of question: {', '.join(unknown)}; there are {', '.join(known)}")
        kinds = kinds or tuple(known)
        count, shares = len(kinds), np.array([known[sort] for sort in kinds])
        even = len(set(shares.tolist())) == 1
        order = self.rng.permutation(count) if even else self.rng.choice(count, count, False, shares / shares.sum())
        asked: Iterator[Asked | None] = (getattr(self, kinds[int(index)])() for index in order)
        if found := next(filter(None, asked), None):
            return found
        raise ValueError(f"the picture admits no question of {', '.join(kinds)}")

    def topic(self, name: str) -> Topic:
        return topics()[f"{self.kind}.{name}"]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def say(self, topic: str, answer: str, *, metric: str | None = None, **slots: str | Sequence[str]) -> Asked:
        """Asks about a topic in any of its phrasings; what fits a slot is one text or several, of which one is taken.

        `metric` is another one than the topic's.
        """
        return self.say_any({topic: answer}, metric=metric, **slots)

    def say_any(self, answers: Mapping[str, str], *, metric: str | None = None, **slots: str | Sequence[str]) -> Asked:
        """Asks about one of several topics, for each of which there is an answer; each phrasing is as likely."""
        name, phrasing = pick(self.rng, [(name, phrasing) for name in answers for phrasing in self.topic(name).ask])
        texts = {slot: text if isinstance(text, str) else pick(self.rng, text) for slot, text in slots.items()}
        prompt = phrasing.format(**texts)
        usual, _, ends = self.topic(name)
        return Asked(f"{prompt} {pick(self.rng, ends)}" if ends else prompt, answers[name], metric or usual)

    def whether(self, topic: str, yes: bool, **slots: str) -> Asked:
        """Asks what is answered with yes or no."""
        return self.say(topic, "yes" if yes else "no", **slots)
