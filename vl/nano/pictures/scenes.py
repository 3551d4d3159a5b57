"""Scenes of coloured shapes: drawing, ground truth and the canonical caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from vl.nano.pictures.canvas import (
    COLOURS,
    CSS_COLOURS,
    RGB,
    Background,
    Box,
    Boxes,
    SizeRange,
    draw_size,
    jitter,
    pick,
)
from vl.nano.pictures.placing import Disc, place_in_cells
from vl.nano.pictures.questions import listed

COUNTS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
MAX_OBJECTS = 6  # each in a cell of its own
MIN_RADIUS = 9.0  # px; below it a hexagon is a circle
_LARGEST = (0.42, 0.28, 0.22, 0.19, 0.17, 0.15)  # radii, of the shorter side, by how many there are
_MIN_CONTRAST = 150.0
_ASPECT = 2.2


@dataclass(frozen=True)
class Outline:
    """A shape inside the unit circle, y pointing down.

    `points` is the outer polygon and `hole` one cut out of it; `turn` is the largest rotation, in degrees, that leaves
    the name right; so do the rotations `ways`, which show the shape lying, upside down or mirrored.
    """

    points: np.ndarray  # [n, 2]
    hole: np.ndarray | None = None
    turn: float = 15.0
    ways: tuple[float, ...] = (0.0,)


def _regular(corners: int, radius: float = 1.0) -> np.ndarray:
    angle = 2 * np.pi * np.arange(corners) / corners - np.pi / 2
    return radius * np.stack((np.cos(angle), np.sin(angle)), axis=1)


def _star() -> np.ndarray:
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    return _regular(10) * radius[:, None]


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) - 2.5
    points = np.stack((x, y), axis=1)
    return points / np.linalg.norm(points, axis=1).max()


def _crescent() -> np.ndarray:
    outer = np.radians(np.linspace(50, 310, 64))
    inner = np.radians(np.linspace(290, 70, 64))
    outside = np.stack((np.cos(outer), np.sin(outer)), axis=1)
    inside = np.stack((np.cos(inner), np.sin(inner)), axis=1) * 0.82 + (0.36, 0.0)
    return np.concatenate((outside, inside))


def _cross(arm: float = 0.3) -> np.ndarray:
    far = (1 - arm**2) ** 0.5
    quarter = np.array(((-arm, -far), (arm, -far), (arm, -arm)))
    turns = (np.array(((c, s), (-s, c))) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)))
    return np.concatenate([quarter @ turn for turn in turns])


SHAPES: dict[str, Outline] = {
    "circle": Outline(_regular(64)),
    "oval": Outline(_regular(64) * (1.0, 0.55), turn=20, ways=(0.0, 90.0)),
    "square": Outline(np.array(((-0.707, -0.707), (0.707, -0.707), (0.707, 0.707), (-0.707, 0.707))), turn=12),
    "rectangle": Outline(np.array(((-0.9, -0.43), (0.9, -0.43), (0.9, 0.43), (-0.9, 0.43))), turn=12, ways=(0.0, 90.0)),
    "triangle": Outline(_regular(3), ways=(0.0, 90.0, 180.0, 270.0)),
    "diamond": Outline(np.array(((0, -1), (0.62, 0), (0, 1), (-0.62, 0))), turn=10),
    "hexagon": Outline(_regular(6), turn=30),
    "star": Outline(_star(), turn=36, ways=(0.0, 180.0)),
    "heart": Outline(_heart(), ways=(0.0, 180.0)),
    "cross": Outline(_cross(), turn=12),
    "ring": Outline(_regular(64), hole=_regular(64, 0.55)),
    "crescent": Outline(_crescent(), turn=25, ways=(0.0, 90.0, 180.0, 270.0)),
}


@dataclass(frozen=True)
class Shape:
    """One object of a scene: `x`, `y` (its centre) and `radius` in pixels, `angle` in degrees.

    `line`: the width in pixels of the outline that it is, 0 for a shape that is filled.
    """

    shape: str
    colour: str
    position: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: RGB
    line: float = 0.0

    @property
    def name(self) -> str:
        """Its colour and form, such as "red circle"."""
        return f"{self.colour} {self.shape}"

    @property
    def middle(self) -> Box:
        """A square about as large as the shape."""
        half = 0.8 * self.radius
        return self.x - half, self.y - half, self.x + half, self.y + half


@dataclass(frozen=True)
class SceneFacts:
    """Ground truth of a scene: its objects in reading order, row of the 3 x 3 grid by row."""

    width: int
    height: int
    shapes: tuple[Shape, ...]

    @property
    def boxes(self) -> Boxes:
        """("red circle", the middle of where it is) of each object."""
        return tuple((shape.name, shape.middle) for shape in self.shapes)

    def in_reading_order(self) -> SceneFacts:
        """The same with the shapes row by row of the 3 x 3 grid, those of a cell from top to bottom."""

        def place(shape: Shape) -> tuple[int, int, float, float]:
            return int(3 * shape.y / self.height), int(3 * shape.x / self.width), shape.y, shape.x

        return replace(self, shapes=tuple(sorted(self.shapes, key=place)))


def draw_scene(
    rng: Generator,
    sizes: Sequence[SizeRange],
    *,
    max_objects: int = MAX_OBJECTS,
    shapes: Sequence[str] = tuple(SHAPES),
    colours: Sequence[str] = tuple(COLOURS),
    textures: float = 0.0,
    odd: float = 0.0,
) -> tuple[Image.Image, SceneFacts]:
    """Draws a scene of 1 to `max_objects` shapes that do not overlap, each in its own cell of the 3 x 3 grid.

    The share `odd` of them is drawn as `paint_shape` says.
    """
    width, height = draw_size(sizes, _ASPECT, rng)
    background = Background.draw(rng, textures)
    image = background.paint(width, height, rng)
    count, side = int(rng.integers(1, max_objects + 1)), min(width, height)
    smallest = max(MIN_RADIUS, 0.07 * side)
    largest = max(smallest, side * _LARGEST[count - 1])

    def radius(share: float) -> tuple[float, float]:
        size = smallest + (largest - smallest) * share
        return size, size

    objects = []
    for _, disc in place_in_cells(rng, width, height, [radius] * count):
        colour, rgb = visible_colour(rng, background, colours, odd)
        objects.append(paint_shape(rng, image, disc, str(rng.choice(shapes)), colour, rgb, odd))
    return image, SceneFacts(width, height, tuple(objects))


def caption_scene(facts: SceneFacts) -> str:
    """The canonical caption, such as "Two shapes: a red circle at the top and a blue star in the center."."""
    phrases = [f"{article(shape.name)} {shape.name} {shape.position}" for shape in facts.shapes]
    return f"{COUNTS[len(phrases)]} shape{'s' if len(phrases) > 1 else ''}: {listed(phrases)}."


def visible_colour(rng: Generator, background: Background, colours: Sequence[str], odd: float = 0.0) -> tuple[str, RGB]:
    """A colour that stands out from the backdrop, or the one that does so best; in the share `odd` one of CSS."""
    names = [str(name) for name in rng.permutation(list(colours))]
    css = bool(odd) and rng.random() < odd
    drawn = [(name, pick(rng, CSS_COLOURS[name]) if css else jitter(name, rng)) for name in names]
    seen = (pair for pair in drawn if background.contrast(pair[1]) >= _MIN_CONTRAST)
    return next(seen, max(drawn, key=lambda pair: background.contrast(pair[1])))


def paint_shape(
    rng: Generator, image: Image.Image, disc: Disc, shape: str, colour: str, rgb: RGB, odd: float = 0.0
) -> Shape:
    """Paints a shape, somewhat turned, with antialiased edges: the mask is drawn enlarged and averaged down.

    In the share `odd` it may lie, be upside down or mirrored, and two times in three is an outline, of a width from a
    thirtieth to an eighth of its radius: a thicker circle would be a ring.
    """
    (x, y, radius, _), outline = disc, SHAPES[shape]
    angle, line = float(rng.uniform(-outline.turn, outline.turn)), 0.0
    if odd and rng.random() < odd:
        angle += pick(rng, outline.ways)
        line = max(1.5, radius * float(rng.uniform(0.03, 0.12))) if rng.random() < 2 / 3 else 0.0
    scale = 4 if radius < 80 else 2
    left, top, side = int(x - radius) - 1, int(y - radius) - 1, int(2 * radius) + 4
    mask = Image.new("L", (side * scale, side * scale))
    draw = ImageDraw.Draw(mask)
    for points, ink in ((outline.points, 255), (outline.hole, 0)):
        if points is not None:
            polygon = (np.array((x - left, y - top)) + (radius - line / 2) * points @ _rotation(angle)) * scale
            corners = polygon.ravel().tolist()
            if line:
                draw.line(corners + corners[:4], fill=255, width=round(line * scale), joint="curve")
            else:
                draw.polygon(corners, fill=ink)
    image.paste(rgb, (left, top), mask.reduce(scale))
    return Shape(shape, colour, disc.position(*image.size), x, y, radius, angle, rgb, line)


def _rotation(degrees: float) -> np.ndarray:
    """Matrix that turns row vectors clockwise on screen (y down)."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array(((c, s), (-s, c)))


def article(word: str) -> str:
    """ "a" or "an"."""
    return "an" if word[0] in "aeiou" else "a"
