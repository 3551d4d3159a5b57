"""Scenes of coloured shapes: drawing, ground truth and the canonical caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from vl.nano.pictures.canvas import COLOURS, RGB, Background, Box, SizeRange, draw_size, jitter
from vl.nano.pictures.questions import listed

POSITIONS = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the center", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
COUNTS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six")
MAX_OBJECTS = len(COUNTS) - 1
_MIN_RADIUS = 9.0  # px; below it a hexagon is a circle
_MIN_CONTRAST = 150.0
_ASPECT = 2.2


@dataclass(frozen=True)
class Outline:
    """A shape inside the unit circle, y pointing down.

    `points` is the outer polygon and `hole` one cut out of it, `anchor` a point well inside the ink, and `turn` the
    largest rotation, in degrees, that leaves the name right.
    """

    points: np.ndarray  # [n, 2]
    hole: np.ndarray | None = None
    anchor: tuple[float, float] = (0.0, 0.0)
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


def _polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points)


def _cross(arm: float = 0.3) -> np.ndarray:
    far = (1 - arm**2) ** 0.5
    quarter = np.array(((-arm, -far), (arm, -far), (arm, -arm)))
    turns = (np.array(((c, s), (-s, c))) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)))
    return np.concatenate([quarter @ turn for turn in turns])


SHAPES: dict[str, Outline] = {
    "circle": Outline(_regular(64)),
    "oval": Outline(_regular(64) * (1.0, 0.55), turn=20),
    "square": Outline(_polygon((-0.707, -0.707), (0.707, -0.707), (0.707, 0.707), (-0.707, 0.707)), turn=12),
    "rectangle": Outline(_polygon((-0.9, -0.43), (0.9, -0.43), (0.9, 0.43), (-0.9, 0.43)), turn=12),
    "triangle": Outline(_regular(3)),
    "diamond": Outline(_polygon((0, -1), (0.62, 0), (0, 1), (-0.62, 0)), turn=10),
    "hexagon": Outline(_regular(6), turn=30),
    "star": Outline(_star(), turn=36),
    "heart": Outline(_heart()),
    "cross": Outline(_cross(), turn=12),
    "ring": Outline(_regular(64), hole=_regular(64, 0.55), anchor=(0.0, -0.78)),
    "crescent": Outline(_crescent(), anchor=(-0.73, 0.0), turn=25),
}


@dataclass(frozen=True)
class Shape:
    """One object of a scene. `x`, `y` (centre), `radius` in pixels, `angle` in degrees; `anchor`: a pixel of it."""

    shape: str
    colour: str
    position: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: RGB
    anchor: tuple[int, int]

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
    def boxes(self) -> tuple[tuple[str, Box], ...]:
        """("red circle", the middle of where it is) of each object."""
        return tuple((shape.name, shape.middle) for shape in self.shapes)


def draw_scene(
    rng: np.random.Generator,
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
    objects = []
    for row, col, x, y, radius in _places(rng, width, height, int(rng.integers(1, max_objects + 1))):
        colour, rgb = visible_colour(rng, background, colours)
        shape = str(rng.choice(shapes))
        outline = SHAPES[shape]
        angle = float(rng.uniform(-outline.turn, outline.turn))
        anchor = np.array((x, y)) + radius * (np.array(outline.anchor) @ rotation(angle))
        pixel = (int(anchor[0]), int(anchor[1]))
        objects.append(Shape(shape, colour, POSITIONS[row][col], x, y, radius, angle, rgb, pixel))
        paint_shape(image, objects[-1])
    return image, SceneFacts(width, height, tuple(objects))


def caption_scene(facts: SceneFacts) -> str:
    """The canonical caption, such as "Two shapes: a red circle at the top and a blue star in the center."."""
    phrases = [f"{article(shape.name)} {shape.name} {shape.position}" for shape in facts.shapes]
    return f"{COUNTS[len(phrases)]} shape{'s' if len(phrases) > 1 else ''}: {listed(phrases)}."


def _places(
    rng: np.random.Generator, width: int, height: int, count: int
) -> list[tuple[int, int, float, float, float]]:
    """(row, col, x, y, radius) of up to `count` discs apart from each other, in reading order."""
    side = min(width, height)
    smallest = max(_MIN_RADIUS, 0.07 * side)
    largest = max(smallest, side * (0.42, 0.28, 0.22, 0.19, 0.17, 0.15)[count - 1])
    placed: list[tuple[int, int, float, float, float]] = []
    for cell in rng.permutation(9):
        if len(placed) == count:
            break
        row, col = divmod(int(cell), 3)
        for attempt in range(12):
            # Smaller at each attempt. The smallest fits the middle cell of any canvas, so no scene is empty.
            radius = float(smallest + (largest - smallest) * rng.random() * (1 - attempt / 11))
            # Keep off the cell's borders, so that a position's name is never a matter of opinion.
            x = draw_coordinate(rng, col, width, radius)
            y = draw_coordinate(rng, row, height, radius)
            if x is None or y is None:
                continue
            if all(np.hypot(x - px, y - py) > radius + pr + 2 for _, _, px, py, pr in placed):
                placed.append((row, col, x, y, radius))
                break
    return sorted(placed, key=lambda place: place[:2])


def draw_coordinate(rng: np.random.Generator, cell: int, extent: int, radius: float) -> float | None:
    """A centre within the cell at which a disc is whole; None where the disc is too large for that."""
    inset = 0.12
    low = max((cell + inset) * extent / 3, radius + 1)
    high = min((cell + 1 - inset) * extent / 3, extent - radius - 1)
    return float(rng.uniform(low, high)) if low <= high else None


def visible_colour(rng: np.random.Generator, background: Background, colours: Sequence[str]) -> tuple[str, RGB]:
    """A colour that stands out from the backdrop, or the one that does so best."""
    drawn = [(str(name), jitter(str(name), rng)) for name in rng.permutation(list(colours))]
    seen = (pair for pair in drawn if background.contrast(pair[1]) >= _MIN_CONTRAST)
    return next(seen, max(drawn, key=lambda pair: background.contrast(pair[1])))


def paint_shape(image: Image.Image, shape: Shape) -> None:
    """Paints with antialiased edges: the mask is drawn enlarged, around the shape only, and averaged down."""
    scale = 4 if shape.radius < 80 else 2
    left, top = int(shape.x - shape.radius) - 1, int(shape.y - shape.radius) - 1
    side = int(2 * shape.radius) + 4
    mask = Image.new("L", (side * scale, side * scale))
    draw = ImageDraw.Draw(mask)
    outline = SHAPES[shape.shape]
    centre = np.array((shape.x - left, shape.y - top))
    for points, ink in ((outline.points, 255), (outline.hole, 0)):
        if points is not None:
            polygon = (centre + shape.radius * points @ rotation(shape.angle)) * scale
            draw.polygon(polygon.ravel().tolist(), fill=ink)
    image.paste(shape.rgb, (left, top), mask.reduce(scale))


def rotation(degrees: float) -> np.ndarray:
    """Matrix that turns row vectors clockwise on screen (y down)."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array(((c, s), (-s, c)))


def article(word: str) -> str:
    """ "a" or "an"."""
    return "an" if word[0] in "aeiou" else "a"
