"""What is said about pictures: lists of things, and questions, whose phrasings `questions.toml` has.

A question comes with what there is to look at before it is answered: things in the order in which they stand, up to
the last that the answer needs, those that are counted with their numbers ("red star #1, blue ring, red star #2"), each
that is higher (or lower) than all before it with an asterisk ("Mar 12 *, Apr 9, May 30 *"), and behind a semicolon what
is made of them ("Mar 12, Apr 30; Apr 30>Mar 12"), or what was not found ("Mar 12, Apr 30; no June"). To go through
things in order is what a caption does, and easier than to find one among them; no step wants more than what is written
before it and one look at the picture, so what is not there is looked for as what is.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from itertools import accumulate, product
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.random import Generator

from vl.nano.pictures.canvas import pick

Facts = TypeVar("Facts")

_MORE = 0.7  # of the questions to learn from, those in one of the phrasings for training alone
_FRAMED = 0.3  # and those that are put as people type
_OPENINGS = (
    *("Please answer: ", "Question: ", "Look at the picture. ", "Hello! ", "One question: ", "In this picture: "),
    *("Quick question: ", "I would like to know: ", "Please: ", "Hi, ", "Here is a picture. ", "And now: "),
)
_CLOSINGS = (" Thanks!", " Please.", " Thank you.")
_BEFORE_STOP = re.compile(r" +(?=[?.,:;])")
# What people leave out who write in a hurry; never what turns a question into another one.
_SMALL_WORDS = re.compile(r"(?<![\w{'\"-])(?:the|a|an|is|are|was|does|do|there|it|of)(?![\w}'\"-]) ?", re.IGNORECASE)
# Those that begin a question and are no names: what is printed keeps its case.
_SENTENCE_WORDS = (
    *("What", "Which", "How", "Is", "Does", "Do", "Can", "Tell", "Give", "Say", "State", "Find", "Name", "Where", "In"),
    *("Count", "Are"),
)


class Asked(NamedTuple):
    """What the user asks, the right answer, and the metric of `vl.evaluation` by which answers are judged.

    `thought`: what is looked at before the answer, "" where nothing is. `within`: by how much a number may be off; None
    for what the metric allows.
    """

    prompt: str
    answer: str
    metric: str
    thought: str = ""
    within: float | None = None

    @property
    def reference(self) -> str:
        """The right answer as metrics are given it."""
        return self.answer if self.within is None else f"{self.answer} ± {self.within:g}"


def listed(names: Sequence[str]) -> str:
    """The names in a row, such as "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def looked(seen: Sequence[str], last: Iterable[int] | None = None, then: str = "") -> str:
    """What is looked at: all that is `seen`, or up to the `last` of these places; `then` is made of it."""
    end = len(seen) if last is None else max(last) + 1
    return "; ".join(filter(None, (", ".join(seen[:end]), then)))


def numbered(seen: Sequence[str], counted: Sequence[bool] | None = None) -> str:
    """What is looked at to count it: all that is seen, those that are counted with their numbers."""
    counted = [True] * len(seen) if counted is None else counted
    numbers = accumulate(map(int, counted))
    return looked([f"{name} #{n}" if one else name for name, one, n in zip(seen, counted, numbers, strict=True)])


def starred(seen: Sequence[str], values: Sequence[float], *, highest: bool) -> str:
    """What is looked at to find the highest or lowest: all that is seen, with a star those beyond all before them."""
    signed = [value if highest else -value for value in values]
    best = accumulate(signed, max, initial=-float("inf"))
    return looked(
        [f"{name} *" if value > most else name for name, value, most in zip(seen, signed, best, strict=False)]
    )


def reckon(high: int, low: int, sign: str) -> str:
    """A sum or difference of whole numbers in steps, tens first: "80-20=60, 60-2=58"."""
    steps, result = [], high
    for part in filter(None, (low // 10 * 10, low % 10)):
        after = result + part if sign == "+" else result - part
        steps.append(f"{result}{sign}{part}={after}")
        result = after
    return ", ".join(steps) or f"{high}{sign}0={high}"


def missing(name: str) -> str:
    """How what is looked at ends where something is not found."""
    return f"no {name}"


def none_of(name: str) -> str:
    """The answer where what is asked about is not there."""
    return f"There is no {name}."


class Topic(NamedTuple):
    """What can be asked for: the metric, the phrasings with slots in braces, and the requests that may close them.

    `more`: phrasings for training alone, in which it takes most of its questions: a model that has read each of a dozen
    phrasings a thousand times knows those and no others. `held`: phrasings that are not learnt from, of which questions
    for testing are made.
    """

    metric: str
    ask: tuple[str, ...]
    end: tuple[str, ...]
    held: tuple[str, ...] = ()
    more: tuple[str, ...] = ()

    def wording(self, rng: Generator, part: str) -> str:
        """A phrasing of a part, one of `fonts.FACES`."""
        if part == "held-out" and self.held:
            return pick(rng, self.held)
        return pick(rng, self.more if part == "learnt" and self.more and rng.random() < _MORE else self.ask)


def spelled_out(phrasing: str) -> list[str]:
    """Every form of a phrasing with alternatives: "[Say|Tell me] it." is "Say it." and "Tell me it."."""
    parts = re.split(r"\[([^\]]*)\]", phrasing)
    choices = (part.split("|") if number % 2 else [part] for number, part in enumerate(parts))
    return ["".join(chosen) for chosen in product(*choices)]


def in_haste(phrasing: str) -> str:
    """A phrasing as one writes it in a hurry: "How many {things} are there?" is "How many {things}?"."""
    return _BEFORE_STOP.sub("", _SMALL_WORDS.sub("", phrasing)).strip() or phrasing


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
            held = tuple(topic.get("held", ()))
            forms = dict.fromkeys(form for phrasing in topic.get("more", ()) for form in spelled_out(phrasing))
            more = tuple(form for form in forms if form not in topic["ask"])
            found[f"{kind}.{name}"] = Topic(topic["metric"], tuple(topic["ask"]), tuple(ends), held, more)
    return found


class Questions(Generic[Facts]):
    """Puts questions about a picture: a method for each sort that `questions.toml` lists under its `kind`.

    Methods give None where the picture does not admit such a question. `part`, one of `fonts.FACES`, says whether it is
    put in phrasings to learn from or in those held out.
    """

    kind: ClassVar[str]

    def __init__(self, rng: Generator, facts: Facts, part: str = "all") -> None:
        self.rng, self.facts, self.part = rng, facts, part

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
        found = topics()[f"{self.kind}.{name}"]
        return found._replace(ask=found.held) if self.part == "held-out" and found.held else found

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def say(
        self,
        topic: str,
        answer: str,
        *,
        metric: str | None = None,
        thought: str = "",
        **slots: str | Sequence[str],
    ) -> Asked:
        """Asks about a topic in any of its phrasings; what fits a slot is one text or several, of which one is taken.

        `metric` is another one than the topic's; `thought` is that of `Asked`.
        """
        return self.say_any({topic: answer}, metric=metric, thought=thought, **slots)

    def say_any(
        self,
        answers: Mapping[str, str],
        *,
        metric: str | None = None,
        thought: str | Mapping[str, str] = "",
        **slots: str | Sequence[str],
    ) -> Asked:
        """Asks about one of several topics, for each of which there is an answer; each phrasing is as likely.

        A closing request, where the topic has some, is added half of the time.
        """
        name, phrasing = pick(self.rng, [(name, phrasing) for name in answers for phrasing in self.topic(name).ask])
        more = self.topic(name).more if self.part == "learnt" else ()
        if more and self.chance(_MORE):
            phrasing = pick(self.rng, more)
        texts = {slot: text if isinstance(text, str) else pick(self.rng, text) for slot, text in slots.items()}
        framed = self.part == "learnt" and self.chance(_FRAMED)
        if framed and self.chance(0.3):
            phrasing, framed = in_haste(phrasing), False
        prompt = phrasing.format(**texts)
        usual, _, ends, *_ = self.topic(name)
        if ends and self.chance(0.5):
            prompt = f"{prompt} {pick(self.rng, ends)}"
        if framed:
            prompt = self._framed(prompt)
        seen = thought if isinstance(thought, str) else thought.get(name, "")
        return Asked(prompt, answers[name], metric or usual, seen)

    def _framed(self, prompt: str) -> str:
        """As people type: after a word or two or before them, without the last stop, or begun in lower case."""
        way = self.rng.random()
        if way < 0.4:
            return pick(self.rng, _OPENINGS) + prompt
        if way < 0.5:
            return prompt + pick(self.rng, _CLOSINGS)
        if way < 0.75:
            return prompt.rstrip(".?")
        return prompt[0].lower() + prompt[1:] if prompt.split()[0] in _SENTENCE_WORDS else prompt.rstrip(".?")

    def whether(self, topic: str, yes: bool, *, thought: str = "", **slots: str) -> Asked:
        """Asks what is answered with yes or no."""
        return self.say(topic, "yes" if yes else "no", thought=thought, **slots)
