"""Scenes of coloured shapes: drawing, ground truth and the canonical caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from vl.nano.pictures.canvas import COLOURS, RGB, Background, Box, Boxes, SizeRange, draw_size, jitter
from vl.nano.pictures.placing import Disc, place_in_cells
from vl.nano.pictures.questions import listed

COUNTS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six")
MAX_OBJECTS = len(COUNTS) - 1
MIN_RADIUS = 9.0  # px; below it a hexagon is a circle
_LARGEST = (0.42, 0.28, 0.22, 0.19, 0.17, 0.15)  # radii, of the shorter side, by how many there are
_MIN_CONTRAST = 150.0
_ASPECT = 2.2


@dataclass(frozen=True)
class Outline:
    """A shape inside the unit circle, y pointing down.

    `points` is the outer polygon and `hole` one cut out of it; `turn` is the largest rotation, in degrees, that leaves
    the name right.
    """

    points: np.ndarray  # [n, 2]
    hole: np.ndarray | None = None
    turn: float = 15.0


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
    "oval": Outline(_regular(64) * (1.0, 0.55), turn=20),
    "square": Outline(np.array(((-0.707, -0.707), (0.707, -0.707), (0.707, 0.707), (-0.707, 0.707))), turn=12),
    "rectangle": Outline(np.array(((-0.9, -0.43), (0.9, -0.43), (0.9, 0.43), (-0.9, 0.43))), turn=12),
    "triangle": Outline(_regular(3)),
    "diamond": Outline(np.array(((0, -1), (0.62, 0), (0, 1), (-0.62, 0))), turn=10),
    "hexagon": Outline(_regular(6), turn=30),
    "star": Outline(_star(), turn=36),
    "heart": Outline(_heart()),
    "cross": Outline(_cross(), turn=12),
    "ring": Outline(_regular(64), hole=_regular(64, 0.55)),
    "crescent": Outline(_crescent(), turn=25),
}


@dataclass(frozen=True)
class Shape:
    """One object of a scene: `x`, `y` (its centre) and `radius` in pixels, `angle` in degrees."""

    shape: str
    colour: str
    position: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: RGB

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


def draw_scene(
    rng: Generator,
    sizes: Sequence[SizeRange],
    *,
    max_objects: int = MAX_OBJECTS,
    shapes: Sequence[str] = tuple(SHAPES),
    colours: Sequence[str] = tuple(COLOURS),
    textures: float = 0.0,
) -> tuple[Image.Image, SceneFacts]:
    """Draws a scene of 1 to `max_objects` shapes that do not overlap, each in its own cell of the 3 x 3 grid."""
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
        colour, rgb = visible_colour(rng, background, colours)
        objects.append(paint_shape(rng, image, disc, str(rng.choice(shapes)), colour, rgb))
    return image, SceneFacts(width, height, tuple(objects))


def caption_scene(facts: SceneFacts) -> str:
    """The canonical caption, such as "Two shapes: a red circle at the top and a blue star in the center."."""
    phrases = [f"{article(shape.name)} {shape.name} {shape.position}" for shape in facts.shapes]
    return f"{COUNTS[len(phrases)]} shape{'s' if len(phrases) > 1 else ''}: {listed(phrases)}."


def visible_colour(rng: Generator, background: Background, colours: Sequence[str]) -> tuple[str, RGB]:
    """A colour that stands out from the backdrop, or the one that does so best."""
    drawn = [(str(name), jitter(str(name), rng)) for name in rng.permutation(list(colours))]
    seen = (pair for pair in drawn if background.contrast(pair[1]) >= _MIN_CONTRAST)
    return next(seen, max(drawn, key=lambda pair: background.contrast(pair[1])))


def paint_shape(rng: Generator, image: Image.Image, disc: Disc, shape: str, colour: str, rgb: RGB) -> Shape:
    """Paints a shape, somewhat turned, with antialiased edges: the mask is drawn enlarged and averaged down."""
    (x, y, radius, _), outline = disc, SHAPES[shape]
    angle = float(rng.uniform(-outline.turn, outline.turn))
    scale = 4 if radius < 80 else 2
    left, top, side = int(x - radius) - 1, int(y - radius) - 1, int(2 * radius) + 4
    mask = Image.new("L", (side * scale, side * scale))
    draw = ImageDraw.Draw(mask)
    for points, ink in ((outline.points, 255), (outline.hole, 0)):
        if points is not None:
            polygon = (np.array((x - left, y - top)) + radius * points @ _rotation(angle)) * scale
            draw.polygon(polygon.ravel().tolist(), fill=ink)
    image.paste(rgb, (left, top), mask.reduce(scale))
    return Shape(shape, colour, disc.position(*image.size), x, y, radius, angle, rgb)


def _rotation(degrees: float) -> np.ndarray:
    """Matrix that turns row vectors clockwise on screen (y down)."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array(((c, s), (-s, c)))


def article(word: str) -> str:
    """ "a" or "an"."""
    return "an" if word[0] in "aeiou" else "a"
