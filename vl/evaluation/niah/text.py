"""Needles and the hay around them, as text: sentences that are drawn, so that no model has read them before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

INTRODUCTION = "Read the text and answer the question that follows it:"

_WORDS = """
amber ancient bitter brass broken calm copper crimson distant dusty empty frozen gentle golden green hollow iron ivory
narrow pale quiet red rusty secret silent silver smooth soft stone velvet violet wooden

anchor apple arrow barn basket bell boat bottle bridge candle carpet castle cellar chair clock cup desk door drum engine
fence forest garden gate hammer harbour hill island kettle ladder lake lamp lantern letter market meadow mill mirror
mountain orchard oven piano river road roof sail ship shop station table tower train tunnel valley village violin wagon
wall well wheel window

carries covers crosses faces follows hides holds keeps leaves meets needs passes shows touches turns watches
"""
ADJECTIVES, NOUNS, VERBS = (tuple(words.split()) for words in _WORDS.split("\n\n"))
DIGITS = 5  # of a code


@dataclass(frozen=True)
class Needle:
    """A code to be found again: `key` is an adjective and a noun, `value` five digits."""

    key: str
    value: str

    @property
    def sentence(self) -> str:
        return f"The code of the {self.key} is {self.value}."

    @property
    def question(self) -> str:
        return f"What is the code of the {self.key}?"


def draw_needles(rng: Random, count: int) -> list[Needle]:
    """Needles of different keys and different values; there are `len(ADJECTIVES) * len(NOUNS)` keys."""
    keys = rng.sample(range(len(ADJECTIVES) * len(NOUNS)), count)
    values = rng.sample(range(10 ** (DIGITS - 1), 10**DIGITS), count)
    named = (f"{ADJECTIVES[key % len(ADJECTIVES)]} {NOUNS[key // len(ADJECTIVES)]}" for key in keys)
    return [Needle(key, str(value)) for key, value in zip(named, values, strict=True)]


def draw_sentences(rng: Random) -> Iterator[str]:
    """Hay without end: sentences about the same things as needles, and no number in them."""
    while True:
        subject, object = (f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}" for _ in range(2))
        yield f"The {subject} {rng.choice(VERBS)} the {object}."
