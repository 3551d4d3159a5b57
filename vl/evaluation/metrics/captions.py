"""Captions: objects named in a scene, and ROUGE-L for captions in any words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from vl.evaluation.metrics.distance import common_subsequence

# What captions are searched for: the words of a scene of coloured shapes.
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "gray", "black", "white")
SHAPES = (
    *("circle", "oval", "square", "rectangle", "triangle", "diamond", "hexagon", "star", "heart", "cross", "ring"),
    "crescent",
)
PLACES = (
    *("at the top left", "at the top right", "at the top", "on the left", "in the center", "on the right"),
    *("at the bottom left", "at the bottom right", "at the bottom"),
)
_MANY = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
_OBJECT = re.compile(
    rf"(?:\b({'|'.join(_MANY)}) )?\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?:e?s)?\b(?: ({'|'.join(PLACES)})\b)?",
    re.IGNORECASE,
)

Named = tuple[str, str, str | None]


def named_shapes(caption: str) -> list[Named]:
    """The (colour, shape, position) triples that a caption names, in its order; position None where none is given.

    "Two blue stars" are two.
    """
    return [
        (colour.lower(), shape.lower(), place.lower() if place else None)
        for many, colour, shape, place in _OBJECT.findall(caption)
        for _ in range(_MANY.get(many.lower(), 1))
    ]


def scene_matches(caption: str, truth: Sequence[Named], *, positions: bool = False) -> bool:
    """Whether a caption names every object of a scene with its colour and shape, and no other object.

    Order does not matter; equal objects have to be named as often as they occur. `positions` asks for the right
    place of each as well.
    """
    width = 3 if positions else 2
    return Counter(named[:width] for named in named_shapes(caption)) == Counter(named[:width] for named in truth)


def right_attributes(caption: str, truth: Sequence[Named]) -> dict[str, int]:
    """How many objects have the right colour, shape and position: the k-th named against the k-th of the truth."""
    pairs = list(zip(named_shapes(caption), truth, strict=False))
    return {name: sum(a[i] == b[i] for a, b in pairs) for i, name in enumerate(("colour", "shape", "position"))}


def rouge_l(reference: str, caption: str) -> float:
    """ROUGE-L F1 (Lin, 2004) from 0 to 1: the longest common subsequence of words, case and punctuation ignored.

    On unaccented text the figure is that of Google's rouge-score without stemming, which knows no other letters.
    """
    a, b = _words(reference), _words(caption)
    common = common_subsequence(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
