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

from numpy.random import Generator

from vl.nano.pictures.canvas import COLOURS, pick
from vl.nano.pictures.placing import POSITIONS
from vl.nano.pictures.questions import Asked, Questions, listed, looked, none_of, numbered, sorts
from vl.nano.pictures.scenes import SHAPES, SceneFacts, Shape, article

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

    def fits(self, shape: Shape) -> bool:
        return self.colour in (None, shape.colour) and self.form in (None, shape.shape)


_BY_GRAIN: tuple[tuple[_Thing, ...], ...] = (
    tuple(_Thing(colour) for colour in COLOURS),
    tuple(_Thing(None, form) for form in SHAPES),
    tuple(_Thing(colour, form) for colour, form in product(COLOURS, SHAPES)),
)


def short_caption(facts: SceneFacts) -> str:
    """Colours and shapes without positions, such as "A red circle and two blue stars.", in the order of the facts."""
    kinds = Counter(shape.name for shape in facts.shapes)
    phrases = [f"{_NUMBERS[n]} {_plural(name)}" if n > 1 else f"{article(name)} {name}" for name, n in kinds.items()]
    text = listed(phrases)
    return f"{text[0].upper()}{text[1:]}."


def _plural(name: str) -> str:
    return f"{name}es" if name.endswith("s") else f"{name}s"


class _SceneQuestions(Questions[SceneFacts]):
    kind = "scenes"

    def counting(self) -> Asked:
        thing = self._counted()
        thought = numbered(self._seen, [thing.fits(shape) for shape in self._ordered])
        return self.say("counting", str(self._count(thing)), things=_plural(thing.name), thought=thought)

    def _counted(self) -> _Thing:
        """All shapes two times in five; else absent ones at times, and any number of the others as likely."""
        if self.chance(0.4):
            return _Thing()
        things = pick(self.rng, _BY_GRAIN)
        if self.chance(0.2):
            return self._absent(things)
        by_count: dict[int, list[_Thing]] = {}
        for thing in things:
            if (count := self._count(thing)) and not self._disputed(thing):
                by_count.setdefault(count, []).append(thing)
        return pick(self.rng, by_count[pick(self.rng, sorted(by_count))])

    def _absent(self, things: Sequence[_Thing]) -> _Thing:
        """Something that is not in the picture, most often with the colour or the form of something that is."""
        absent = [t for t in things if not self._count(t) and not self._disputed(t)]
        near = [t for t in absent if any(t.colour == s.colour or t.form == s.shape for s in self.facts.shapes)]
        # Not a word of it in the picture is too easy to learn.
        both = [t for t in near if self._count(_Thing(t.colour)) and self._count(_Thing(None, t.form))]
        chance = self.rng.random()
        return pick(self.rng, (chance < 0.5 and both) or (chance < 0.85 and near) or absent)

    def presence(self) -> Asked:
        things = _BY_GRAIN[int(self.rng.choice(3, p=(0.2, 0.3, 0.5)))]
        yes = self.chance(0.5)
        thing = pick(self.rng, [t for t in things if self._count(t)]) if yes else self._absent(things)
        first = [i for i, shape in enumerate(self._ordered) if thing.fits(shape)][:1]
        thought = looked(self._seen, first or None)
        return self.whether("presence", yes, thing=f"{article(thing.name)} {thing.name}", thought=thought)

    def colour(self) -> Asked | None:
        shapes = self.facts.shapes
        named = [(s.shape, s.colour, self._up_to(s)) for s in shapes if self._is_one(_Thing(None, s.shape))]
        named += [(f"shape {s.position}", s.colour, "") for s in shapes if self._alone_in_place(s)]
        if not named:
            return None
        thing, colour, thought = pick(self.rng, named)
        return self.say("colour", colour, thing=thing, thought=thought)

    def shape(self) -> Asked | None:
        named = [s for s in self.facts.shapes if self._is_one(_Thing(s.colour))]
        if not named:
            return None
        shape = pick(self.rng, named)
        return self.say("shape", shape.shape, colour=shape.colour, thought=self._up_to(shape))

    def place(self) -> Asked | None:
        """Where something is or, as often, what is somewhere."""
        named = [(s, names) for s in self.facts.shapes if self._in_place(s) and (names := self._names(s))]
        alone = [s for s in self.facts.shapes if self._alone_in_place(s)]
        if alone and (not named or self.chance(0.5)):
            shape = pick(self.rng, alone)
            return self.say("what", shape.name, place=shape.position)
        if not named:
            return None
        shape, names = pick(self.rng, named)
        return self.say("where", shape.position, thing=names, thought=self._up_to(shape))

    def absent(self) -> Asked:
        """The colour, form or place of something that is not there."""
        topic, grain = pick(self.rng, (("colour", 1), ("shape", 0), ("where", 2)))
        thing = self._absent(_BY_GRAIN[grain])
        return self.say(
            topic, none_of(thing.name), thing=thing.name, colour=thing.colour or "", thought=looked(self._seen)
        )

    def relation(self) -> Asked | None:
        """Of two shapes: is one left of (above, ...) the other; on which side is it; which one is further that way."""
        named = [(s, names) for s in self.facts.shapes if (names := self._names(s))]
        pairs = [
            ((names, others), (a, b), axis)
            for axis in (0, 1)
            for (a, names), (b, others) in permutations(named, 2)
            if self._clearly_before(a, b, axis)
        ]
        if not pairs:
            return None
        named_so, shapes, axis = pick(self.rng, pairs)
        pair = [pick(self.rng, names) for names in named_so]
        first = int(self.rng.integers(2))  # the one that is named first: 0 has the lower coordinate
        one, other = pair[first], pair[1 - first]
        thought = looked([self._at(shapes[i], axis) for i in (first, 1 - first)])
        form = self.rng.random()
        if form < 0.6:
            yes = self.chance(0.5)
            side = pick(self.rng, _SIDES[axis][first if yes else 1 - first])
            return self.whether("whether", yes, one=one, side=side, other=other, thought=thought)
        if form < 0.8:
            either, answers = _EITHER[axis]
            return self.say("which-side", answers[first], one=one, either=either, other=other, thought=thought)
        way = int(self.rng.integers(2))
        further = _FURTHER[axis][way]
        return self.say("which-of-two", pair[way], further=further, one=one, other=other, thought=thought)

    def extreme(self) -> Asked | None:
        found = [(s, axis, way) for axis, way in product((0, 1), (0, 1)) for s in self._outermost(axis, way)]
        if not found:
            return None
        shape, axis, way = pick(self.rng, found)
        thought = looked([self._at(other, axis) for other in self._ordered])
        return self.say("extreme", shape.name, furthest=_FURTHEST[axis][way], thought=thought)

    @property
    def _ordered(self) -> tuple[Shape, ...]:
        """The shapes row by row, as one goes through them."""
        return self.facts.in_reading_order().shapes

    @property
    def _seen(self) -> list[str]:
        return [shape.name for shape in self._ordered]

    def _up_to(self, shape: Shape) -> str:
        """What is looked at until one is found."""
        return looked(self._seen, [self._ordered.index(shape)])

    def _at(self, shape: Shape, axis: int) -> str:
        """A shape and the tenth of the picture's width (axis 0) or height in which its centre is, from 0 to 9."""
        share = (shape.x / self.facts.width, shape.y / self.facts.height)[axis]
        return f"{shape.name} {min(9, max(0, int(10 * share)))}"

    def _count(self, thing: _Thing) -> int:
        return sum(map(thing.fits, self.facts.shapes))

    def _disputed(self, thing: _Thing) -> bool:
        """Whether the picture holds something that the wider sense of the name includes."""
        narrower = _ALSO.get(thing.form or "", ())
        return any(s.shape in narrower and thing.colour in (None, s.colour) for s in self.facts.shapes)

    def _is_one(self, thing: _Thing) -> bool:
        """Whether "the red circle", "the circle" or "the red shape" is one shape and no other."""
        return self._count(thing) == 1 and not self._disputed(thing)

    def _names(self, shape: Shape) -> list[str]:
        """What the shape can be called so that no other is meant, if anything."""
        things = (_Thing(shape.colour, shape.shape), _Thing(None, shape.shape), _Thing(shape.colour))
        return [thing.name for thing in things if self._is_one(thing)]

    def _clearly_before(self, a: Shape, b: Shape, axis: int) -> bool:
        """Whether `a` is left of `b` (axis 0) or above it (axis 1), for everybody."""
        along, across = ((b.x - a.x, b.y - a.y), (b.y - a.y, b.x - a.x))[axis]
        side = (self.facts.width, self.facts.height)[axis]
        return along >= max(_MARGIN * side, _SLANT * abs(across), a.radius + b.radius)

    def _outermost(self, axis: int, way: int) -> list[Shape]:
        """The shape that lies clearly furthest along `axis`, down to 0 (`way` 0) or up, if there is one."""
        sign = 1 if way else -1
        margin = _MARGIN * (self.facts.width, self.facts.height)[axis]
        ranked = sorted(((sign * (s.x, s.y)[axis], s) for s in self.facts.shapes), key=lambda pair: -pair[0])
        if len(ranked) < 2 or ranked[0][0] - ranked[1][0] < margin:
            return []
        reach = [place + s.radius for place, s in ranked]
        return [ranked[0][1]] if reach[0] > max(reach[1:]) else []

    def _offsets(self, shape: Shape) -> tuple[float, float]:
        """Where the centre is, in cells of the grid from its left and top."""
        return 3 * shape.x / self.facts.width, 3 * shape.y / self.facts.height

    def _in_place(self, shape: Shape) -> bool:
        """Whether the centre keeps off the borders of its cell of the grid."""
        return all(_INSET <= at % 1 <= 1 - _INSET for at in self._offsets(shape))

    def _alone_in_place(self, shape: Shape) -> bool:
        """Whether, besides, no other centre is in the cell or near it."""
        col, row = (int(at) for at in self._offsets(shape))

        def near(other: Shape) -> bool:
            x, y = self._offsets(other)
            return all(-_INSET < offset < 1 + _INSET for offset in (x - col, y - row))

        alone = shape.position == POSITIONS[row][col] and self._in_place(shape)
        return alone and sum(map(near, self.facts.shapes)) == 1


TASK_KINDS = tuple(sorts("scenes"))
"""The kinds of question: how many, is there, what colour, what shape, where (or what is there), is A left of B, which
is left-most, and what of these is asked of something absent."""


def ask_scene(rng: Generator, facts: SceneFacts, part: str = "all", *, kinds: Sequence[str] = TASK_KINDS) -> Asked:
    """Asks a question of one of `kinds` (some of `TASK_KINDS`), each as likely of those that the scene admits.

    Raises:
        ValueError: for a kind that does not exist, or when the scene admits none: a single shape has no neighbour to
            be left of. "counting" and "presence" are always admitted.
    """
    return _SceneQuestions(rng, facts, part).ask(kinds)
