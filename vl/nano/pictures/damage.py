"""What happens to pictures on their way: a slight turn, blur, noise and JPEG artefacts."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageChops, ImageFilter

from vl.nano.pictures.canvas import RGB, Box, Boxes, tiled

_MAX_TURN = 2.5  # degrees: more, and words would change their lines, and shapes maybe their cells
_MAX_BLUR = 0.8  # px of standard deviation: letters of 14 px stay legible
_MAX_NOISE = 12.0  # 8-bit steps of standard deviation
_QUALITY = (30, 92)


def damage(rng: Generator, image: Image.Image, boxes: Boxes) -> tuple[Image.Image, Boxes]:
    """A copy of an RGB image, of the same size, with one to four kinds of damage, and where its things came to lie.

    Everything stays as legible as a person needs it to be, and nothing is cut off: a picture that is turned is reduced
    until its corners fit, by a few percent.
    """
    kinds = rng.random(4) < (0.4, 0.35, 0.35, 0.6)
    if not kinds.any():
        kinds[int(rng.integers(4))] = True
    turned, blurred, noisy, compressed = kinds
    if turned:
        # A long picture shrinks more by the same turn: at most by about a twentieth.
        most = min(_MAX_TURN, float(np.degrees(0.05 * min(image.size) / max(image.size))))
        image, boxes = turn(image, boxes, float(rng.uniform(-most, most)))
    if blurred:
        image = image.filter(_gauss(float(rng.uniform(0.2, _MAX_BLUR))))
    if noisy:
        image = _with_noise(image, rng, float(rng.uniform(2, _MAX_NOISE)))
    if compressed:
        image = _compressed(image, int(rng.integers(*_QUALITY)))
    return image, boxes


def turn(image: Image.Image, boxes: Boxes, degrees: float) -> tuple[Image.Image, Boxes]:
    """The picture turned clockwise about its centre and reduced to fit its canvas.

    Boxes stay upright: each is as wide and high as it was, reduced, about its centre's new place.
    """
    width, height = image.size
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    reach_x, reach_y = width * abs(c) + height * abs(s), width * abs(s) + height * abs(c)
    scale = min(width / reach_x, height / reach_y)
    turned = scale * np.array(((c, -s), (s, c)))  # of column vectors, y pointing down
    middle = np.array((width / 2, height / 2))
    back = np.linalg.inv(turned)
    offset = middle - back @ middle
    matrix = (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1])
    result = image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=_corner(image)
    )
    return result, tuple((name, _moved(box, turned, middle, scale)) for name, box in boxes)


def _moved(box: Box, turned: np.ndarray, middle: np.ndarray, scale: float) -> Box:
    left, top, right, bottom = box
    x, y = middle + turned @ (np.array(((left + right) / 2, (top + bottom) / 2)) - middle)
    half_width, half_height = scale * (right - left) / 2, scale * (bottom - top) / 2
    return float(x - half_width), float(y - half_height), float(x + half_width), float(y + half_height)


def _corner(image: Image.Image) -> RGB:
    """The colour of the first corner, for the wedges that a turn leaves open."""
    red, green, blue = image.getpixel((0, 0))  # type: ignore[misc]
    return int(red), int(green), int(blue)


def _gauss(deviation: float) -> ImageFilter.Kernel:
    """The 3 x 3 pixels of a Gaussian that matter at such deviations, in px; Pillow's own filter takes three passes."""
    side = float(np.exp(-0.5 / deviation**2))
    row = np.array((side, 1.0, side))
    return ImageFilter.Kernel((3, 3), np.outer(row, row).ravel().tolist())


def _with_noise(image: Image.Image, rng: Generator, deviation: float) -> Image.Image:
    # The same noise for the three channels costs a third; a patch of it repeats on large pictures.
    width, height = image.size
    noise = rng.normal(128.0, deviation, size=(min(height, 512), min(width, 512))).round().astype(np.uint8)
    grey = tiled(Image.fromarray(noise), width, height)
    return ImageChops.add(image, Image.merge("RGB", (grey, grey, grey)), 1, -128)


def _compressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")
