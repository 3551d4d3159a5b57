"""Colours, canvas sizes and backgrounds shared by the renderers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageChops

_T = TypeVar("_T")

RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""
NamedBox = tuple[str, Box]
Boxes = tuple[NamedBox, ...]
"""Where each thing, or each printed character but the spaces, of a picture is."""


@dataclass(frozen=True)
class Hue:
    """A named colour: the ranges that its jitter stays in (hue in degrees, saturation and value in 0..1)."""

    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]


# Wide enough to need seeing rather than matching, apart enough that a person would not argue.
COLOURS: dict[str, Hue] = {
    "red": Hue((354, 364), (0.85, 1.0), (0.75, 0.95)),
    "orange": Hue((25, 34), (0.9, 1.0), (0.95, 1.0)),
    "yellow": Hue((51, 57), (0.85, 1.0), (0.95, 1.0)),
    "green": Hue((105, 140), (0.65, 1.0), (0.45, 0.72)),
    "cyan": Hue((178, 188), (0.7, 1.0), (0.88, 1.0)),
    "blue": Hue((216, 236), (0.75, 1.0), (0.65, 0.95)),
    "purple": Hue((272, 286), (0.65, 0.9), (0.45, 0.7)),
    "pink": Hue((324, 340), (0.35, 0.5), (0.95, 1.0)),
    "brown": Hue((20, 28), (0.65, 0.8), (0.36, 0.48)),
    "gray": Hue((0, 360), (0.0, 0.04), (0.46, 0.58)),
    "black": Hue((0, 360), (0.0, 0.3), (0.0, 0.1)),
    "white": Hue((0, 360), (0.0, 0.02), (0.96, 1.0)),
}


# Colours of CSS that nobody would call by another of the twelve names; most lie outside the ranges above.
CSS_COLOURS: dict[str, tuple[RGB, ...]] = {
    "red": ((255, 0, 0), (220, 20, 60), (205, 0, 0)),
    "orange": ((255, 165, 0), (255, 140, 0)),
    "yellow": ((255, 255, 0), (255, 215, 0)),
    "green": ((0, 128, 0), (0, 255, 0), (34, 139, 34), (0, 100, 0), (50, 205, 50)),
    "cyan": ((0, 255, 255), (0, 206, 209)),
    "blue": ((0, 0, 255), (65, 105, 225), (30, 144, 255), (0, 0, 128)),
    "purple": ((128, 0, 128), (75, 0, 130), (138, 43, 226), (102, 51, 153)),
    "pink": ((255, 192, 203), (255, 105, 180), (255, 182, 193)),
    "brown": ((165, 42, 42), (139, 69, 19)),
    "gray": ((128, 128, 128), (105, 105, 105), (169, 169, 169)),
    "black": ((0, 0, 0),),
    "white": ((255, 255, 255),),
}


def pick(rng: Generator, options: Sequence[_T]) -> _T:
    """Draws one of the options, each as likely."""
    return options[int(rng.integers(len(options)))]


TEXTURES = ("stripes", "checks", "dots")
_MIN_CONTRAST = 230.0  # of print against a backdrop
_WHITE = 0.25  # of the light backdrops, those that are white, as behind pictures that were transparent
_MIN_STEP = 60.0  # and so much of luminance, 0 to 255
_MIN_LUMINANCE = 130.0  # the same on plain paper, of luminance, 0 to 255: blue on black is seen but hardly read


def jitter(colour: str, rng: Generator) -> RGB:
    """Draws one RGB value of a named colour."""
    hue = COLOURS[colour]
    return hsv(rng.uniform(*hue.hue), rng.uniform(*hue.saturation), rng.uniform(*hue.value))


def inner(ink: Box) -> Box:
    """The middle of a box around something's ink, four fifths as wide and as high: what is surely of it."""
    left, top, right, bottom = ink
    dx, dy = 0.1 * (right - left), 0.1 * (bottom - top)
    return left + dx, top + dy, right - dx, bottom - dy


def hsv(hue: float, saturation: float, value: float) -> RGB:
    """Hue in degrees, saturation and value in 0..1, to 8-bit RGB."""

    def channel(n: int) -> int:
        k = (n + hue / 60) % 6
        return round(255 * (value - value * saturation * max(0.0, min(k, 4 - k, 1.0))))

    return channel(5), channel(3), channel(1)


def contrast(a: RGB, b: RGB) -> float:
    """Perceived difference of two colours, 0 to about 765 (Riemersma's red-mean approximation)."""
    red = (a[0] + b[0]) / 2
    dr, dg, db = (float(x - y) for x, y in zip(a, b, strict=True))
    return ((2 + red / 256) * dr * dr + 4 * dg * dg + (2 + (255 - red) / 256) * db * db) ** 0.5


def blend(a: RGB, b: RGB, share: float) -> RGB:
    """`share` of the way from colour `a` to colour `b`."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def readable(colour: RGB) -> RGB:
    """Black or white, whichever can be read better on `colour`."""
    return (0, 0, 0) if _luminance(colour) > 130 else (255, 255, 255)


def _luminance(colour: RGB) -> float:
    """Brightness as the eye weighs it, 0 to 255."""
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue


@dataclass(frozen=True)
class Tones:
    """Colours that go together: of the page, of print on it, of a shaded part of it and of rules."""

    paper: RGB
    ink: RGB
    shade: RGB
    rule: RGB

    @classmethod
    def draw(cls, rng: Generator) -> Tones:
        dark = rng.random() < 0.25
        if dark:
            paper = hsv(rng.uniform(0, 360), rng.uniform(0, 0.6), rng.uniform(0.03, 0.24))
        elif rng.random() < 0.35:
            paper = (255, 255, 255)
        else:
            paper = hsv(rng.uniform(0, 360), rng.uniform(0, 0.14), rng.uniform(0.88, 1.0))
        best = (255, 255, 255) if dark else (0, 0, 0)
        drawn = hsv(rng.uniform(0, 360), rng.uniform(0, 1), rng.uniform(0.7, 1.0) if dark else rng.uniform(0, 0.5))
        ink = drawn if abs(_luminance(drawn) - _luminance(paper)) >= _MIN_LUMINANCE else best
        return cls(paper, ink, blend(paper, ink, rng.uniform(0.03, 0.1)), blend(paper, ink, rng.uniform(0.18, 0.6)))


@dataclass(frozen=True)
class Background:
    """A backdrop: a linear gradient between two colours (equal for a plain one) at `angle` degrees, plus noise.

    `noise` is the amplitude in 8-bit steps; `grain` the size of a noise cell in pixels. `texture`, one of `TEXTURES`,
    is a pattern of the two colours instead of the gradient, repeating every `pitch` pixels.
    """

    start: RGB
    end: RGB
    angle: float
    noise: int
    grain: int
    texture: str = ""
    pitch: int = 0

    @classmethod
    def draw(cls, rng: Generator, textures: float = 0.0) -> Background:
        """Draws one; `textures` is the share that have a texture."""
        tone = rng.random()
        if tone < 0.45:  # light
            light = hsv(rng.uniform(0, 360), rng.uniform(0, 0.22), rng.uniform(0.8, 1.0))
            start = (255, 255, 255) if rng.random() < _WHITE else light
        elif tone < 0.75:  # dark
            start = hsv(rng.uniform(0, 360), rng.uniform(0, 0.6), rng.uniform(0.03, 0.3))
        else:
            start = hsv(rng.uniform(0, 360), rng.uniform(0.1, 0.7), rng.uniform(0.3, 0.85))
        end = start
        if rng.random() < 0.5:
            shift = rng.integers(-36, 37, size=3)
            red, green, blue = (int(min(255, max(0, c + s))) for c, s in zip(start, shift, strict=True))
            end = (red, green, blue)
        noise = int(rng.integers(4, 26)) if rng.random() < 0.4 else 0
        plain = cls(start, end, float(rng.uniform(0, 360)), noise, int(rng.choice((1, 1, 2, 4, 12))))
        if textures and rng.random() < textures:
            return plain._textured(rng)
        return plain

    def _textured(self, rng: Generator) -> Background:
        """The same with a texture. Its second colour is a shade of the first: things have to stand out from both."""
        shade = rng.choice((-1, 1)) * rng.integers(10, 37)
        red, green, blue = (int(min(255, max(0, c + shade))) for c in self.start)
        name, pitch = str(rng.choice(TEXTURES)), round(6 * 10 ** float(rng.uniform(0, 1)))
        return replace(self, end=(red, green, blue), texture=name, pitch=pitch)

    def contrast(self, colour: RGB) -> float:
        """The least contrast that `colour` has against either end of the backdrop."""
        return min(contrast(colour, self.start), contrast(colour, self.end))

    def draw_ink(self, rng: Generator) -> RGB:
        """A colour that stands out from the backdrop: random, or else the better of black and white."""
        for _ in range(4):
            colour = hsv(rng.uniform(0, 360), rng.uniform(0, 1), rng.uniform(0, 1))
            if self.contrast(colour) >= _MIN_CONTRAST and self._shows(colour):
                return colour
        return max(((0, 0, 0), (255, 255, 255)), key=self.contrast)

    def _shows(self, colour: RGB) -> bool:
        """Whether the eye finds it brighter or darker than either end: hues alone are hard to read."""
        return min(abs(_luminance(colour) - _luminance(end)) for end in (self.start, self.end)) >= _MIN_STEP

    def paint(self, width: int, height: int, rng: Generator) -> Image.Image:
        if self.texture:
            image = self._pattern(width, height)
        elif self.start == self.end:
            image = Image.new("RGB", (width, height), self.start)
        else:
            image = self._gradient(width, height)
        return self._with_noise(image, rng) if self.noise else image

    def _gradient(self, width: int, height: int) -> Image.Image:
        # 32 x 32 samples of a linear ramp, enlarged bilinearly, are the ramp itself.
        side = np.linspace(-0.5, 0.5, 32)
        angle = np.radians(self.angle)
        ramp = 0.5 + (np.cos(angle) * side[None, :] + np.sin(angle) * side[:, None]) / 1.4143
        start, end = np.array(self.start), np.array(self.end)
        pixels = start + (end - start) * ramp[..., None]  # [32, 32, 3]
        small = Image.fromarray(pixels.round().astype(np.uint8))
        return small.resize((width, height), Image.Resampling.BILINEAR)

    def _pattern(self, width: int, height: int) -> Image.Image:
        x, y = np.arange(width, dtype=np.float32)[None, :], np.arange(height, dtype=np.float32)[:, None]
        angle = np.radians(self.angle)
        u = (np.cos(angle) * x + np.sin(angle) * y) / self.pitch
        v = (np.cos(angle) * y - np.sin(angle) * x) / self.pitch if self.texture != "stripes" else u
        # What `% 1` gives, in a tenth of its time.
        u -= np.floor(u)
        if self.texture == "stripes":
            second = u < 0.5
        else:
            v -= np.floor(v)
            second = (u < 0.5) ^ (v < 0.5) if self.texture == "checks" else (u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.09
        image = Image.new("RGB", (width, height), self.start)
        image.paste(self.end, mask=Image.fromarray(second.astype(np.uint8) * 255))
        return image

    def _with_noise(self, image: Image.Image, rng: Generator) -> Image.Image:
        # One patch of noise repeated: 12 million numbers for the largest canvas would take longer than the rest.
        width, height = image.size
        patch_w, patch_h = min(width, 256 * self.grain), min(height, 256 * self.grain)
        cells = (-(-patch_h // self.grain), -(-patch_w // self.grain), 3)
        noise = Image.fromarray(rng.integers(0, 2 * self.noise + 1, size=cells, dtype=np.uint8))
        patch = noise.resize((patch_w, patch_h), Image.Resampling.NEAREST)
        return ImageChops.add(image, tiled(patch, width, height), 1, -self.noise)


def tiled(patch: Image.Image, width: int, height: int) -> Image.Image:
    """A picture of that size that repeats a patch from its left and top."""
    full = Image.new(patch.mode, (width, height))
    for top in range(0, height, patch.height):
        for left in range(0, width, patch.width):
            full.paste(patch, (left, top))
    return full


@dataclass(frozen=True)
class SizeRange:
    """Canvases whose longer side is `low` to `high` pixels, drawn with the relative frequency `share`."""

    low: int
    high: int
    share: float


def draw_size(ranges: Sequence[SizeRange], aspect: float, rng: Generator) -> tuple[int, int]:
    """Draws (width, height): the longer side by `ranges`, the ratio of the sides log-uniform up to `aspect`."""
    shares = np.array([r.share for r in ranges])
    chosen = ranges[int(rng.choice(len(ranges), p=shares / shares.sum()))]
    longer = int(rng.integers(chosen.low, chosen.high + 1))
    ratio = aspect ** rng.uniform(-1, 1)
    shorter = max(32, round(longer * min(ratio, 1 / ratio)))
    return (longer, shorter) if ratio > 1 else (shorter, longer)
