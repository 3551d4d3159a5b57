"""Scenes to count: up to nine shapes, many of them alike, anywhere on the canvas, in rows or in a heap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from PIL import Image

from vl.nano.pictures.canvas import COLOURS, RGB, Background, SizeRange, draw_size, pick
from vl.nano.pictures.placing import Disc, throw
from vl.nano.pictures.scenes import MIN_RADIUS, SHAPES, SceneFacts, paint_shape, visible_colour

MAX_COUNT = 9
_MIN_SHARE = 0.03  # of the longer side: the largest canvases are shrunk before they are seen
_GAP = 3.0  # px between two shapes
_OVERLAP = 0.5  # of the radius that most have, how much closer than touching two shapes may come
_COVER = 0.3  # the share of the canvas that discs thrown at random can be made to cover
_ASPECT = 2.2

_Kind = tuple[str, str, RGB]  # shape, colour and the colour's value


def draw_counts(
    rng: Generator,
    sizes: Sequence[SizeRange],
    *,
    max_objects: int = MAX_COUNT,
    shapes: Sequence[str] = tuple(SHAPES),
    colours: Sequence[str] = tuple(COLOURS),
    textures: float = 0.0,
    odd: float = 0.0,
) -> tuple[Image.Image, SceneFacts]:
    """Draws 1 to `max_objects` shapes, any number as likely, that do not overlap.

    The share `odd` of them is drawn as `paint_shape` says, and of pictures, shapes in a heap may touch and overlap.

    The facts name the most frequent kind first, and each kind from top to bottom; several shapes may share a cell of
    the 3 x 3 grid or lie near its border. The canvas grows where it is too small to hold them at a radius of 9 px: nine
    of them want about 90 x 90 px.
    """
    count = int(rng.integers(1, max_objects + 1))
    close = bool(odd) and bool(rng.random() < odd)
    width, height, discs = _lay_out(rng, *draw_size(sizes, _ASPECT, rng), count, close)
    background = Background.draw(rng, textures)
    image = background.paint(width, height, rng)
    kinds = _kinds(rng, background, count, shapes, colours, odd)
    objects = [paint_shape(rng, image, disc, *kind, odd) for disc, kind in zip(discs, kinds, strict=True)]
    often = Counter(shape.name for shape in objects)
    objects.sort(key=lambda s: (-often[s.name], s.colour, s.shape, s.y, s.x))
    return image, SceneFacts(width, height, tuple(objects))


def _kinds(
    rng: Generator, background: Background, count: int, shapes: Sequence[str], colours: Sequence[str], odd: float
) -> list[_Kind]:
    """What each object is: all alike, alike but for the colour, alike but for the shape, or of two or three kinds."""
    style = rng.choice(4, p=(0.3, 0.25, 0.2, 0.25))
    varieties = 1 if style == 0 else int(rng.integers(2, 4))
    forms = [str(form) for form in rng.permutation(list(shapes))[:varieties]]
    inks: list[tuple[str, RGB]] = []
    for _ in range(varieties):
        left = [colour for colour in colours if colour not in {name for name, _ in inks}]
        if left:
            inks.append(visible_colour(rng, background, left, odd))
    if style == 1:
        forms = forms[:1]
    elif style == 2:
        inks = inks[:1]
    palette = [(forms[i % len(forms)], *inks[i % len(inks)]) for i in range(varieties)]
    return [palette[int(i)] for i in rng.integers(varieties, size=count)]


def _lay_out(rng: Generator, width: int, height: int, count: int, close: bool) -> tuple[int, int, list[Disc]]:
    """Width and height of a canvas that holds `count` discs, and the discs; `close` ones may overlap in a heap."""
    in_rows = rng.random() < 0.35
    while True:
        discs = _rows(rng, width, height, count) if in_rows else _heap(rng, width, height, count, close)
        if discs is not None:
            return width, height, discs
        width, height = round(1.15 * width), round(1.15 * height)


def _smallest(width: int, height: int) -> float:
    return max(MIN_RADIUS, _MIN_SHARE * max(width, height))


def _rows(rng: Generator, width: int, height: int, count: int) -> list[Disc] | None:
    """Discs of one size in one to `count` rows, a little off their places; None where they would be too small."""
    layouts, smallest = [], _smallest(width, height)
    for rows in range(1, count + 1):
        cols = -(-count // rows)
        room = min(width / cols, height / rows)
        # Not one more row than it takes, and no row that is a row in name only.
        if room / 2 - _GAP >= smallest and -(-count // cols) == rows:
            layouts.append((rows, cols, room / 2 - _GAP))
    if not layouts:
        return None
    rows, cols, largest = pick(rng, layouts)
    radius = smallest + (largest - smallest) * float(rng.uniform(0.2, 0.95))
    slack = largest - radius
    shifts = rng.uniform(-slack, slack, size=(count, 2)) * (rng.random() < 0.5)
    places = [((i % cols + 0.5) * width / cols, (i // cols + 0.5) * height / rows) for i in range(count)]
    return [Disc(x + dx, y + dy, radius, radius) for (x, y), (dx, dy) in zip(places, shifts.tolist(), strict=True)]


def _heap(rng: Generator, width: int, height: int, count: int, close: bool) -> list[Disc] | None:
    """Discs of one or several sizes thrown at random into the canvas or a part of it; None where they do not fit."""
    smallest = _smallest(width, height)
    shares = rng.uniform(0.55, 1.0, size=2) if rng.random() < 0.4 else np.ones(2)
    wide, high = (float(extent * share) for extent, share in zip((width, height), shares, strict=True))
    left, top = float(rng.uniform(0, width - wide)), float(rng.uniform(0, height - high))
    largest = min(0.42 * min(wide, high), (_COVER * wide * high / (count * np.pi)) ** 0.5)
    if largest < smallest:
        return None
    base = smallest + (largest - smallest) * float(rng.uniform(0.1, 1.0))
    spread = float(rng.choice((0.0, 0.4)))
    discs: list[Disc] = []

    def draw(attempt: int) -> Disc:
        radius = max(smallest, base * (1 - spread * float(rng.random())) * (1 - attempt / 80))
        x, y = (float(rng.uniform(radius + 1, extent - radius - 1)) for extent in (wide, high))
        return Disc(left + x, top + y, radius, radius)

    gap = -_OVERLAP * base if close else _GAP
    return discs if all(throw(draw, 40, discs, gap) for _ in range(count)) else None
