"""What counts as right: character error rate, and objects named in a caption."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from vl.training.canvas import COLOURS
from vl.training.scenes import POSITIONS, SHAPES, SceneFacts

_PLACES = "|".join(sorted((p for row in POSITIONS for p in row), key=len, reverse=True))
_OBJECT = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b(?: ({_PLACES})\b)?", re.IGNORECASE)
_QUOTED = re.compile(r'"(.*)"', re.DOTALL)


def edit_distance(a: Sequence[object], b: Sequence[object]) -> int:
    """Levenshtein distance: the fewest insertions, deletions and substitutions that turn `a` into `b`."""
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        current = [i]
        for j, y in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (x != y)))
        previous = current
    return previous[-1]


def character_error_rate(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Edits over all pairs divided by the characters of all references, as jiwer's `cer` counts; can exceed 1.

    Raises:
        ValueError: if the lists differ in length or the references are empty.
    """
    if len(references) != len(predictions):
        raise ValueError(f"{len(references)} references for {len(predictions)} predictions: give one each")
    characters = sum(map(len, references))
    if not characters:
        raise ValueError("the references hold no characters, so no error rate exists")
    return sum(map(edit_distance, references, predictions)) / characters


def named_shapes(caption: str) -> list[tuple[str, str, str | None]]:
    """The (colour, shape, position) triples that a caption names, in its order; position None where none is given."""
    return [
        (colour.lower(), shape.lower(), place.lower() if place else None)
        for colour, shape, place in _OBJECT.findall(caption)
    ]


def scene_matches(caption: str, facts: SceneFacts, *, positions: bool = False) -> bool:
    """Whether a caption names every object of a scene with its colour and shape, and no other object.

    Order does not matter; equal objects have to be named as often as they occur. `positions` asks for the right
    place of each as well.
    """
    width = 3 if positions else 2
    truth = Counter((s.colour, s.shape, s.position)[:width] for s in facts.shapes)
    return Counter(triple[:width] for triple in named_shapes(caption)) == truth


def attribute_accuracy(captions: Sequence[str], scenes: Sequence[SceneFacts]) -> dict[str, float]:
    """Where captions go wrong: the shares of scenes with the right number of objects, and of objects with the right
    colour, shape and position. The k-th object named is held against the k-th in reading order.
    """
    counted = 0
    right: Counter[str] = Counter()
    objects = sum(len(facts.shapes) for facts in scenes)
    for caption, facts in zip(captions, scenes, strict=True):
        named = named_shapes(caption)
        counted += len(named) == len(facts.shapes)
        for (colour, shape, position), truth in zip(named, facts.shapes, strict=False):
            right["colour"] += colour == truth.colour
            right["shape"] += shape == truth.shape
            right["position"] += position == truth.position
    return {"count": counted / len(scenes)} | {name: right[name] / objects for name in ("colour", "shape", "position")}


def read_text(answer: str) -> str:
    """The text that an answer quotes, or the whole answer where it quotes none."""
    quoted = _QUOTED.search(answer)
    return (quoted.group(1) if quoted else answer).strip()
