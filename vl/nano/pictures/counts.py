"""Scenes to count: up to nine shapes, many of them alike, anywhere on the canvas, in rows or in a heap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vl.nano.pictures.canvas import COLOURS, RGB, Background, SizeRange, draw_size
from vl.nano.pictures.scenes import POSITIONS, SHAPES, SceneFacts, Shape, paint_shape, rotation, visible_colour

MAX_COUNT = 9
_MIN_RADIUS = 9.0  # px; below it a hexagon is a circle
_MIN_SHARE = 0.03  # of the longer side: the largest canvases are shrunk before they are seen
_GAP = 3.0  # px between two shapes
_COVER = 0.3  # the share of the canvas that discs thrown at random can be made to cover
_ASPECT = 2.2

_Kind = tuple[str, str, RGB]  # shape, colour and the colour's value
_Disc = tuple[float, float, float]  # x, y, radius


@dataclass(frozen=True)
class CountFacts(SceneFacts):
    """Ground truth of a scene to count: its shapes, the most frequent kind first, each kind from top to bottom.

    `position` names the cell of the 3 x 3 grid that holds a centre; several may share a cell or lie near its border.
    """


def draw_counts(
    rng: np.random.Generator,
    sizes: Sequence[SizeRange],
    *,
    max_objects: int = MAX_COUNT,
    shapes: Sequence[str] = tuple(SHAPES),
    colours: Sequence[str] = tuple(COLOURS),
    textures: float = 0.0,
) -> tuple[Image.Image, CountFacts]:
    """Draws 1 to `max_objects` shapes that do not overlap, any number as likely.

    The canvas grows where it is too small to hold them at a radius of 9 px: nine of them want about 90 x 90 px.
    """
    count = int(rng.integers(1, max_objects + 1))
    width, height, discs = _lay_out(rng, *draw_size(sizes, _ASPECT, rng), count)
    background = Background.draw(rng, textures)
    image = background.paint(width, height, rng)
    kinds = _kinds(rng, background, count, shapes, colours)
    objects = []
    for (x, y, radius), (shape, colour, rgb) in zip(discs, kinds, strict=True):
        outline = SHAPES[shape]
        angle = float(rng.uniform(-outline.turn, outline.turn))
        anchor = np.array((x, y)) + radius * (np.array(outline.anchor) @ rotation(angle))
        position = POSITIONS[int(3 * y / height)][int(3 * x / width)]
        pixel = (int(anchor[0]), int(anchor[1]))
        objects.append(Shape(shape, colour, position, x, y, radius, angle, rgb, pixel))
        paint_shape(image, objects[-1])
    return image, CountFacts(width, height, _sorted(objects))


def _sorted(objects: list[Shape]) -> tuple[Shape, ...]:
    names = [(s.colour, s.shape) for s in objects]
    return tuple(sorted(objects, key=lambda s: (-names.count((s.colour, s.shape)), s.colour, s.shape, s.y, s.x)))


def _kinds(
    rng: np.random.Generator, background: Background, count: int, shapes: Sequence[str], colours: Sequence[str]
) -> list[_Kind]:
    """What each object is: all alike, alike but for the colour, alike but for the shape, or of two or three kinds."""
    style = rng.choice(4, p=(0.3, 0.25, 0.2, 0.25))
    varieties = 1 if style == 0 else int(rng.integers(2, 4))
    forms = [str(form) for form in rng.permutation(list(shapes))[:varieties]]
    inks: list[tuple[str, RGB]] = []
    for _ in range(varieties):
        left = [colour for colour in colours if colour not in {name for name, _ in inks}]
        if left:
            inks.append(visible_colour(rng, background, left))
    if style == 1:
        forms = forms[:1]
    elif style == 2:
        inks = inks[:1]
    palette = [(forms[i % len(forms)], *inks[i % len(inks)]) for i in range(varieties)]
    return [palette[int(i)] for i in rng.integers(varieties, size=count)]


def _lay_out(rng: np.random.Generator, width: int, height: int, count: int) -> tuple[int, int, list[_Disc]]:
    """Width and height of a canvas that holds `count` discs, and the discs."""
    in_rows = rng.random() < 0.35
    while True:
        discs = _rows(rng, width, height, count) if in_rows else _heap(rng, width, height, count)
        if discs is not None:
            return width, height, discs
        width, height = round(1.15 * width), round(1.15 * height)


def _smallest(width: int, height: int) -> float:
    return max(_MIN_RADIUS, _MIN_SHARE * max(width, height))


def _rows(rng: np.random.Generator, width: int, height: int, count: int) -> list[_Disc] | None:
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
    rows, cols, largest = layouts[int(rng.integers(len(layouts)))]
    radius = smallest + (largest - smallest) * float(rng.uniform(0.2, 0.95))
    slack = largest - radius
    shifts = rng.uniform(-slack, slack, size=(count, 2)) * (rng.random() < 0.5)
    return [
        (
            float((i % cols + 0.5) * width / cols + shifts[i, 0]),
            float((i // cols + 0.5) * height / rows + shifts[i, 1]),
            radius,
        )
        for i in range(count)
    ]


def _heap(rng: np.random.Generator, width: int, height: int, count: int) -> list[_Disc] | None:
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
    discs: list[_Disc] = []
    for _ in range(count):
        for attempt in range(40):
            radius = max(smallest, base * (1 - spread * rng.random()) * (1 - attempt / 80))
            inset = radius + 1
            x = left + float(rng.uniform(inset, wide - inset))
            y = top + float(rng.uniform(inset, high - inset))
            if all(np.hypot(x - px, y - py) > radius + pr + _GAP for px, py, pr in discs):
                discs.append((x, y, float(radius)))
                break
        else:
            return None
    return discs
