"""Pictures of nothing that the model knows: blank, noise, gradients, textures and what looks like a photograph.

What looks like one is made: clouds of noise at several scales in the colours of a palette, cells (Voronoi), hills under
a sky; or it is a part of a photograph, where a folder with some is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from vl.nano.pictures.canvas import COLOURS, Background, Boxes, SizeRange, draw_size, hsv, pick
from vl.nano.pictures.photographs import NONE, Photographs
from vl.nano.pictures.questions import Asked, Questions, topics
from vl.nano.pictures.scenes import SHAPES, article

NOTHING = "I see nothing here that I know."
NO_IMAGE = "I see no image."
_ASPECT = 2.2
_SMALL = 336  # px: these pictures are made no larger, and enlarged

_Paint = Callable[[Generator, int, int], Image.Image]


@dataclass(frozen=True)
class NothingFacts:
    """Ground truth: what `sort` of nothing it is: of `SORTS`, `VARIED`, "photo", or "absent", without a picture."""

    width: int
    height: int
    sort: str

    @property
    def boxes(self) -> Boxes:
        """None: there is nothing."""
        return ()


def draw_nothing(
    rng: Generator,
    sizes: Sequence[SizeRange],
    *,
    sorts: Sequence[str] = (),
    photographs: Photographs = NONE,
    absent: float = 0.0,
) -> tuple[Image.Image | None, NothingFacts]:
    """Draws a picture of one of `sorts`, if none is named any of `SORTS`, and where photographs are varied of `VARIED`.

    There is no picture at all in the share `absent`.

    Where no sort is named, `photographs` has its share of them.

    Raises:
        ConfigError: as `Photographs.draw`.
    """
    if absent and rng.random() < absent:
        return None, NothingFacts(0, 0, "absent")
    width, height = draw_size(sizes, _ASPECT, rng)
    if photographs.folder and not sorts and rng.random() < photographs.share:
        return photographs.draw(rng, width, height), NothingFacts(width, height, "photo")
    sort = pick(rng, sorts or (*SORTS, *(VARIED if photographs.varied else ())))
    scale = min(1.0, _SMALL / max(width, height))
    small = (SORTS | VARIED)[sort](rng, max(8, round(width * scale)), max(8, round(height * scale)))
    image = small if scale == 1.0 else small.resize((width, height), Image.Resampling.BICUBIC)
    return image.crop((0, 0, width, height)), NothingFacts(width, height, sort)


def draw_ground(rng: Generator, width: int, height: int, photographs: Photographs = NONE) -> Image.Image:
    """A picture of nothing of this size for other things to lie on; arguments and errors as of `draw_nothing`."""
    square = (SizeRange(_SMALL, _SMALL, 1.0),)
    ground, _ = draw_nothing(rng, square, photographs=photographs)
    assert ground is not None
    return ground.resize((width, height), Image.Resampling.BICUBIC)


def draw_photograph(
    rng: Generator, sizes: Sequence[SizeRange], photographs: Photographs
) -> tuple[Image.Image, NothingFacts]:
    """A part of a photograph, as a picture of nothing. Raises ConfigError as `Photographs.draw`."""
    width, height = draw_size(sizes, _ASPECT, rng)
    return photographs.draw(rng, width, height), NothingFacts(width, height, "photo")


def describe_nothing(facts: NothingFacts) -> str:
    """One sentence that says so."""
    return NO_IMAGE if facts.sort == "absent" else NOTHING


class _NothingQuestions(Questions[NothingFacts]):
    kind = "nothing"

    def counting(self) -> Asked | None:
        if self.facts.sort == "absent":
            return None
        things = (f"{self._thing()}s", "shapes", "emoji", "words", "things that you know")
        return self.say("counting", "0", things=things)

    def presence(self) -> Asked | None:
        if self.facts.sort == "absent":
            return None
        thing = self._thing()
        return self.whether("presence", False, thing=f"{article(thing)} {thing}")

    def anything(self) -> Asked:
        """What could be asked of other pictures."""
        topic = pick(self.rng, [topic for topic in topics().values() if not any("{" in text for text in topic.ask)])
        prompt = topic.wording(self.rng, self.part)
        if topic.metric == "counting" and self.facts.sort != "absent":
            return Asked(prompt, "0", topic.metric)
        return Asked(prompt, describe_nothing(self.facts), "vqa")

    def _thing(self) -> str:
        form = pick(self.rng, [form for form in SHAPES if not form.endswith("s")])
        return f"{pick(self.rng, tuple(COLOURS))} {form}" if self.chance(0.5) else form


def ask_nothing(rng: Generator, facts: NothingFacts, part: str = "all") -> Asked:
    """Asks for what is not there."""
    return _NothingQuestions(rng, facts, part).ask()


def _blank(rng: Generator, width: int, height: int) -> Image.Image:
    colour = pick(rng, ((255, 255, 255), (0, 0, 0), hsv(rng.uniform(0, 360), rng.random(), rng.random())))
    return Image.new("RGB", (width, height), colour)


def _gradient(rng: Generator, width: int, height: int) -> Image.Image:
    start, end = (np.array(hsv(rng.uniform(0, 360), rng.random(), rng.random())) for _ in range(2))
    x, y = np.linspace(-1, 1, width)[None], np.linspace(-1, 1, height)[:, None]
    angle, around = rng.uniform(0, 2 * np.pi), rng.random() < 0.3
    ramp = np.hypot(x, y) if around else (np.cos(angle) * x + np.sin(angle) * y + 1.42) / 2.84
    return _picture(start + (end - start) * np.clip(ramp, 0, 1)[..., None])


def _noise(rng: Generator, width: int, height: int) -> Image.Image:
    """Grains of one size, in grey or colours, around a mean."""
    grain, channels = int(rng.choice((1, 1, 2, 3, 6))), int(rng.choice((1, 3)))
    shape = (-(-height // grain), -(-width // grain), channels)
    values = rng.normal(rng.uniform(60, 200), rng.uniform(15, 90), size=shape)
    if rng.random() < 0.3:  # salt and pepper
        values = np.where(rng.random(shape) < rng.uniform(0.1, 0.9), 255.0, 0.0)
    return _picture(values.repeat(grain, 0).repeat(grain, 1)[:height, :width])


def _texture(rng: Generator, width: int, height: int) -> Image.Image:
    """Stripes, checks or dots, some of them bent, in any two colours."""
    plain = Background.draw(rng, 1.0)
    other = hsv(rng.uniform(0, 360), rng.random(), rng.random())
    strong = Background(plain.start, other, plain.angle, plain.noise, plain.grain, plain.texture, plain.pitch)
    image = strong.paint(width, height, rng)
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 3)))) if rng.random() < 0.4 else image


def _clouds(rng: Generator, width: int, height: int) -> Image.Image:
    return _picture(_coloured(rng, _plasma(rng, width, height)))


def _cells(rng: Generator, width: int, height: int) -> Image.Image:
    """The nearest of some points (Voronoi), each cell in its colour, or brighter towards the borders."""
    count = int(rng.integers(8, 60))
    points = rng.random((count, 2)) * (width, height)
    y, x = np.mgrid[0:height:2, 0:width:2].astype(np.float32)
    distance = np.stack(
        [(x - px) ** 2 + (y - py) ** 2 for px, py in points.tolist()]
    )  # [points, height / 2, width / 2]
    nearest = distance.argmin(axis=0)
    if rng.random() < 0.5:
        edge = np.sqrt(distance.min(axis=0))
        return _picture(_coloured(rng, edge / max(1.0, edge.max()))).resize((width, height))
    return _picture(_coloured(rng, rng.random(count))[nearest]).resize((width, height))


def _hills(rng: Generator, width: int, height: int) -> Image.Image:
    """Ranges of hills under a sky, the nearer the darker, with grain as of a camera."""
    sky = (
        np.linspace(0, 1, height)[:, None, None] * (np.array(_colour(rng)) - (start := np.array(_colour(rng)))) + start
    )
    pixels = np.repeat(sky, width, axis=1)
    rows, near = np.arange(height)[:, None], np.array(_colour(rng))
    ranges = int(rng.integers(1, 5))
    for number in range(ranges):
        crest = height * (0.35 + 0.5 * (number + rng.random()) / ranges)
        line = crest + height * 0.35 * (_plasma(rng, width, 8)[0] - 0.5)
        share = (number + 1) / ranges
        shade = pixels[0, 0] * (1 - share) + near * share * 0.7
        rough = 40 * share * (_plasma(rng, width, height)[..., None] - 0.5)
        pixels = np.where((rows > line)[..., None], shade + rough, pixels)
    return _picture(pixels + rng.normal(0, rng.uniform(0, 8), size=pixels.shape)).filter(ImageFilter.SMOOTH)


def _blobs(rng: Generator, width: int, height: int) -> Image.Image:
    """Soft lights and bodies out of focus before a ground, shaded from one side."""
    pixels = _coloured(rng, _plasma(rng, width, height)) * 0.5 + 0.5 * np.array(_colour(rng))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    for _ in range(int(rng.integers(2, 9))):
        wide, high = rng.uniform(0.05, 0.4, size=2) * (width, height)
        turn, cx, cy = rng.uniform(0, np.pi), rng.uniform(0, width), rng.uniform(0, height)
        u = ((x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)) / wide
        v = ((y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)) / high
        inside = 1 / (1 + np.exp(np.clip((u * u + v * v - 1) * rng.uniform(1.5, 8), -30, 30)))[..., None]
        lit = np.clip(1 - 0.4 * (u + v), 0.2, 1.6)[..., None]
        pixels = pixels * (1 - inside) + inside * lit * np.array(_colour(rng))
    return _picture(pixels + rng.normal(0, rng.uniform(0, 10), size=pixels.shape))


def _bands(rng: Generator, width: int, height: int) -> Image.Image:
    """Bands that sweep across, straight or swung, sharp or soft, as in wallpapers that are rendered."""
    image = _gradient(rng, width, height)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    hue, spread = rng.uniform(0, 360), rng.choice((25.0, 180.0))
    swing = float(rng.choice((0.0, rng.uniform(0.1, 0.4))))
    for _ in range(int(rng.integers(2, 7))):
        angle, wave, phase = rng.uniform(0, np.pi), rng.uniform(1, 4), rng.uniform(0, 2 * np.pi)
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        across = c * x + s * y - np.float32(rng.uniform(-0.8, 0.8))
        if swing:
            across = across + np.float32(swing) * np.sin(np.float32(wave) * (s * x - c * y) + np.float32(phase))
        edge, fall = (float(np.exp(rng.uniform(np.log(0.01), np.log(1.5)))) for _ in range(2))
        mask = np.clip(across / np.float32(edge), 0, 1) * np.clip(1.2 - across / np.float32(2 * fall + 0.2), 0.0, 1.0)
        colour = hsv((hue + rng.uniform(-spread, spread)) % 360, rng.uniform(0.1, 1.0), rng.uniform(0.1, 1.0))
        image.paste(colour, mask=Image.fromarray((mask * np.float32(rng.uniform(120, 255))).astype(np.uint8)))
    return image


SORTS: dict[str, _Paint] = {
    "blank": _blank,
    "gradient": _gradient,
    "noise": _noise,
    "texture": _texture,
    "clouds": _clouds,
    "cells": _cells,
    "hills": _hills,
    "blobs": _blobs,
}
VARIED: dict[str, _Paint] = {"bands": _bands}
"""What training draws besides, where it varies pictures: tasks do not."""


def _colour(rng: Generator) -> tuple[int, int, int]:
    return hsv(rng.uniform(0, 360), rng.uniform(0, 0.8), rng.uniform(0.15, 1.0))


def _picture(pixels: np.ndarray) -> Image.Image:
    """[height, width, 1 or 3] of any values as a picture, clipped."""
    return Image.fromarray(np.broadcast_to(pixels.clip(0, 255), (*pixels.shape[:2], 3)).astype(np.uint8))


def _plasma(rng: Generator, width: int, height: int) -> np.ndarray:
    """[height, width] of 0 to 1: noise at several scales, the coarser the stronger."""
    total, fall = np.zeros((height, width), np.float32), float(rng.uniform(0.35, 0.75))
    for octave in range(1, 7):
        cells = np.clip((2**octave, round(2**octave * height / width)), 2, 256)
        grid = Image.fromarray(rng.random((int(cells[1]), int(cells[0])), dtype=np.float32))
        total += fall**octave * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(1e-6, high - low)


def _coloured(rng: Generator, values: np.ndarray) -> np.ndarray:
    """[..., 3] for values of 0 to 1: a palette of three to six colours, blended."""
    palette = np.array([_colour(rng) for _ in range(int(rng.integers(3, 7)))], float)
    at = np.linspace(0, 1, len(palette))
    return np.stack([np.interp(values, at, palette[:, channel]) for channel in range(3)], axis=-1)
