"""Questions about scenes of shapes, how many, where, which, left of or above, and captions without positions.

A question is asked only where nobody could dispute its answer:
- "left of", "right of", "above" and "below" want centres that differ along that axis by at least 15% of the picture's
  side and by at least half of what they differ along the other, and discs around the shapes that do not overlap along
  it;
- the left-most shape (right-most, top-most, bottom-most) has its centre at least 15% of the side beyond every other
  centre, and reaches further than any other shape;
- a place is asked for only where the centre lies well inside its cell of the 3 x 3 grid;
- squares are rectangles and diamonds, circles are ovals and some would call a ring a circle: the wider name is not
  asked for where the narrower thing is in the picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import permutations, product
from typing import NamedTuple

import numpy as np

from vl.nano.pictures.canvas import COLOURS, pick
from vl.nano.pictures.placing import POSITIONS
from vl.nano.pictures.questions import Asked, Question, ask_one_of, listed, say, topics
from vl.nano.pictures.scenes import SHAPES, SceneFacts, Shape, article

TASK_KINDS = ("counting", "presence", "colour", "shape", "place", "relation", "extreme")
"""The kinds of question: how many, is there, what colour, what shape, where (or what is there), is A left of B, and
which is left-most."""

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_MARGIN = 0.15  # of the picture's side
_SLANT = 0.5  # how much of the difference along the other axis there has to be along the one that is asked for
_INSET = 0.1  # of a cell's side, from its borders
_ALSO = {"rectangle": ("square",), "diamond": ("square",), "oval": ("circle",), "circle": ("ring",)}

# For each axis: what the one with the lower coordinate is to the other, and the other to it.
_SIDES = ((("left of", "to the left of"), ("right of", "to the right of")), (("above",), ("below",)))
_EITHER = (("left or right of", ("left", "right")), ("above or below", ("above", "below")))
_FURTHER = (("further left", "further right"), ("higher up", "lower down"))
_FURTHEST = (
    (("furthest left", "left-most"), ("furthest right", "right-most")),
    (("furthest up", "top-most"), ("furthest down", "bottom-most")),
)


class _Thing(NamedTuple):
    """What a question asks about: shapes of this colour, of this form, of both, or all of them."""

    colour: str | None = None
    form: str | None = None

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.colour, self.form or "shape")))

    @property
    def plural(self) -> str:
        return _plural(self.name)

    def fits(self, shape: Shape) -> bool:
        return self.colour in (None, shape.colour) and self.form in (None, shape.shape)

    def count(self, facts: SceneFacts) -> int:
        return sum(map(self.fits, facts.shapes))

    def disputed(self, facts: SceneFacts) -> bool:
        """Whether the picture holds something that the wider sense of the name includes."""
        narrower = _ALSO.get(self.form or "", ())
        return any(s.shape in narrower and self.colour in (None, s.colour) for s in facts.shapes)


_BY_GRAIN: tuple[tuple[_Thing, ...], ...] = (
    tuple(_Thing(colour) for colour in COLOURS),
    tuple(_Thing(None, form) for form in SHAPES),
    tuple(_Thing(colour, form) for colour, form in product(COLOURS, SHAPES)),
)


def ask_scene(rng: np.random.Generator, facts: SceneFacts, *, kinds: Sequence[str] = TASK_KINDS) -> Asked:
    """Asks a question of one of `kinds` (some of `TASK_KINDS`), each as likely of those that the scene admits.

    Raises:
        ValueError: for a kind that does not exist, or when the scene admits none: a single shape has no neighbour to
            be left of. "counting" and "presence" are always admitted.
    """
    return ask_one_of(rng, facts, _ASK, kinds)


def short_caption(facts: SceneFacts) -> str:
    """Colours and shapes without positions, such as "A red circle and two blue stars.", in the order of the facts."""
    kinds = Counter(shape.name for shape in facts.shapes)
    phrases = [f"{_NUMBERS[n]} {_plural(name)}" if n > 1 else f"{article(name)} {name}" for name, n in kinds.items()]
    text = listed(phrases)
    return f"{text[0].upper()}{text[1:]}."


def _ask_count(rng: np.random.Generator, facts: SceneFacts) -> Asked:
    topic = topics()["scenes.counting"]
    phrasing, thing = pick(rng, topic.ask), _counted(rng, facts)
    return Asked(phrasing.format(things=thing.plural), str(thing.count(facts)), topic.metric)


def _counted(rng: np.random.Generator, facts: SceneFacts) -> _Thing:
    """All shapes two times in five; else absent ones at times, and any number of the others as likely."""
    if rng.random() < 0.4:
        return _Thing()
    things = pick(rng, _BY_GRAIN)
    if rng.random() < 0.2:
        return _absent(rng, facts, things)
    by_count: dict[int, list[_Thing]] = {}
    for thing in things:
        if (count := thing.count(facts)) and not thing.disputed(facts):
            by_count.setdefault(count, []).append(thing)
    return pick(rng, by_count[pick(rng, sorted(by_count))])


def _absent(rng: np.random.Generator, facts: SceneFacts, things: Sequence[_Thing]) -> _Thing:
    """Something that is not in the picture, most often with the colour or the form of something that is."""
    absent = [t for t in things if not t.count(facts) and not t.disputed(facts)]
    near = [t for t in absent if any(t.colour == s.colour or t.form == s.shape for s in facts.shapes)]
    # Not a word of it in the picture is too easy to learn.
    both = [t for t in near if _Thing(t.colour).count(facts) and _Thing(None, t.form).count(facts)]
    chance = rng.random()
    return pick(rng, (chance < 0.5 and both) or (chance < 0.85 and near) or absent)


def _ask_presence(rng: np.random.Generator, facts: SceneFacts) -> Asked:
    grain = int(rng.choice(3, p=(0.2, 0.3, 0.5)))
    if yes := rng.random() < 0.5:
        thing = pick(rng, [t for t in _BY_GRAIN[grain] if t.count(facts)])
    else:
        thing = _absent(rng, facts, _BY_GRAIN[grain])
    return say(rng, "scenes.presence", "yes" if yes else "no", thing=f"{article(thing.name)} {thing.name}")


def _ask_colour(rng: np.random.Generator, facts: SceneFacts) -> Asked | None:
    named = [(thing.name, s.colour) for s in facts.shapes if _refers(thing := _Thing(None, s.shape), facts)]
    named += [(f"shape {s.position}", s.colour) for s in facts.shapes if _alone_in_place(s, facts)]
    if not named:
        return None
    name, colour = pick(rng, named)
    return say(rng, "scenes.colour", colour, thing=name)


def _ask_shape(rng: np.random.Generator, facts: SceneFacts) -> Asked | None:
    named = [s for s in facts.shapes if _refers(_Thing(s.colour), facts)]
    if not named:
        return None
    shape = pick(rng, named)
    return say(rng, "scenes.shape", shape.shape, colour=shape.colour)


def _ask_place(rng: np.random.Generator, facts: SceneFacts) -> Asked | None:
    """Where something is or, as often, what is somewhere."""
    named = [(s, names) for s in facts.shapes if _in_place(s, facts) and (names := _names(s, facts))]
    alone = [s for s in facts.shapes if _alone_in_place(s, facts)]
    if alone and (not named or rng.random() < 0.5):
        shape = pick(rng, alone)
        return say(rng, "scenes.what", shape.name, place=shape.position)
    if not named:
        return None
    shape, names = pick(rng, named)
    return say(rng, "scenes.where", shape.position, thing=names)


def _ask_relation(rng: np.random.Generator, facts: SceneFacts) -> Asked | None:
    """Of two shapes: is one left of (above, ...) the other; on which side is it; which one is further that way."""
    named = [(s, names) for s in facts.shapes if (names := _names(s, facts))]
    pairs = [
        (names, others, axis)
        for axis in (0, 1)
        for (a, names), (b, others) in permutations(named, 2)
        if _clearly_before(a, b, axis, facts)
    ]
    if not pairs:
        return None
    names, others, axis = pick(rng, pairs)
    pair = (pick(rng, names), pick(rng, others))
    first = int(rng.integers(2))  # the one that is named first: 0 has the lower coordinate
    one, other = pair[first], pair[1 - first]
    form = rng.random()
    if form < 0.6:
        yes = rng.random() < 0.5
        side = pick(rng, _SIDES[axis][first if yes else 1 - first])
        return say(rng, "scenes.whether", "yes" if yes else "no", one=one, side=side, other=other)
    if form < 0.8:
        either, answers = _EITHER[axis]
        return say(rng, "scenes.which-side", answers[first], one=one, either=either, other=other)
    way = int(rng.integers(2))
    return say(rng, "scenes.which-of-two", pair[way], further=_FURTHER[axis][way], one=one, other=other)


def _ask_extreme(rng: np.random.Generator, facts: SceneFacts) -> Asked | None:
    found = [(s, axis, way) for axis, way in product((0, 1), (0, 1)) for s in _extreme(facts, axis, way)]
    if not found:
        return None
    shape, axis, way = pick(rng, found)
    return say(rng, "scenes.extreme", shape.name, furthest=_FURTHEST[axis][way])


_ASK: dict[str, Question[SceneFacts]] = {
    "counting": _ask_count,
    "presence": _ask_presence,
    "colour": _ask_colour,
    "shape": _ask_shape,
    "place": _ask_place,
    "relation": _ask_relation,
    "extreme": _ask_extreme,
}


def _refers(thing: _Thing, facts: SceneFacts) -> bool:
    """Whether "the red circle", "the circle" or "the red shape" is one shape and no other."""
    return thing.count(facts) == 1 and not thing.disputed(facts)


def _names(shape: Shape, facts: SceneFacts) -> list[str]:
    """What the shape can be called so that no other is meant, if anything."""
    things = (_Thing(shape.colour, shape.shape), _Thing(None, shape.shape), _Thing(shape.colour))
    return [thing.name for thing in things if _refers(thing, facts)]


def _clearly_before(a: Shape, b: Shape, axis: int, facts: SceneFacts) -> bool:
    """Whether `a` is left of `b` (axis 0) or above it (axis 1), for everybody."""
    along, across = ((b.x - a.x, b.y - a.y), (b.y - a.y, b.x - a.x))[axis]
    side = (facts.width, facts.height)[axis]
    return along >= max(_MARGIN * side, _SLANT * abs(across), a.radius + b.radius)


def _extreme(facts: SceneFacts, axis: int, way: int) -> list[Shape]:
    """The shape that lies clearly furthest along `axis`, down to 0 (`way` 0) or up, if there is one."""
    sign = 1 if way else -1
    margin = _MARGIN * (facts.width, facts.height)[axis]
    ranked = sorted(((sign * (s.x, s.y)[axis], s) for s in facts.shapes), key=lambda pair: pair[0], reverse=True)
    if len(ranked) < 2 or ranked[0][0] - ranked[1][0] < margin:
        return []
    reach = [place + s.radius for place, s in ranked]
    return [ranked[0][1]] if reach[0] > max(reach[1:]) else []


def _in_place(shape: Shape, facts: SceneFacts) -> bool:
    """Whether the centre keeps off the borders of its cell of the grid."""
    return all(_INSET <= 3 * at / side % 1 <= 1 - _INSET for at, side in _coordinates(shape, facts))


def _alone_in_place(shape: Shape, facts: SceneFacts) -> bool:
    """Whether, besides, no other centre is in the cell or near it."""
    cell = [int(3 * at / side) for at, side in _coordinates(shape, facts)]

    def near(other: Shape) -> bool:
        offsets = (3 * at / side - c for (at, side), c in zip(_coordinates(other, facts), cell, strict=True))
        return all(-_INSET < offset < 1 + _INSET for offset in offsets)

    position = POSITIONS[cell[1]][cell[0]]
    return shape.position == position and _in_place(shape, facts) and sum(map(near, facts.shapes)) == 1


def _coordinates(shape: Shape, facts: SceneFacts) -> tuple[tuple[float, int], tuple[float, int]]:
    return (shape.x, facts.width), (shape.y, facts.height)


def _plural(name: str) -> str:
    return f"{name}es" if name.endswith("s") else f"{name}s"
