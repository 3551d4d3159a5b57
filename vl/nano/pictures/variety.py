"""How few pictures are made many: in other colours, bent, outlined, coarse, partly hidden; any part of a photograph.

What names a thing stays: a fruit has its colours, a taxi is yellow.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from vl.nano.pictures.canvas import RGB, Box, hsv

_GREY = np.full((3, 3), 1.0) * np.array((0.299, 0.587, 0.114))
_TURN, _SHEAR, _STRETCH = 22.0, 0.25, 0.3  # degrees; of the height; at most, of the logarithm
_HIDDEN = 0.3  # of a side, at most
_CLOSEST = 0.18  # of a photograph's largest part, how long the smallest is
_FINEST = 504  # px: parts of photographs are made no larger, and enlarged


def vary_cutout(rng: Generator, image: Image.Image, keep_colours: bool) -> Image.Image:
    """Another picture of the thing that an RGBA image of at most some hundred pixels shows, cropped to its ink.

    With `keep_colours`, hues change by a few degrees and nothing is grey, or drawn in outlines.
    """
    alpha, inks = image.getchannel("A"), image.convert("RGB")
    style = float(rng.random())
    if not keep_colours and style < 0.22:
        inks = _restyled(rng, inks, alpha, style / 0.22)
    else:
        inks = _recoloured(rng, inks, hue=10.0 if keep_colours else 25.0, any_hue=0.0 if keep_colours else 0.3)
    if rng.random() < 0.12:
        inks = ImageOps.posterize(inks, int(rng.integers(2, 4)))
    varied = inks.convert("RGBA")
    varied.putalpha(alpha)
    if rng.random() < 0.15:  # as of a small picture, or one out of focus
        varied = varied.reduce(int(rng.integers(2, 4))) if min(varied.size) > 48 else varied
    if rng.random() < 0.7:
        varied = _bent(rng, varied)
    if rng.random() < 0.25:
        _hide(rng, varied)
    return varied.crop(varied.getchannel("A").point(lambda value: 255 * (value > 24)).getbbox())


def vary_photo(rng: Generator, width: int, height: int, photo: Image.Image, least: float = _CLOSEST) -> Image.Image:
    """A part of a photograph of these sides, from close-up to whole, turned or not, in any light and colours.

    It is `least` as long as the longest part that there is, or longer, each doubling as likely.
    """
    fine = min(1.0, _FINEST / max(width, height))
    image = _part(rng, max(8, round(width * fine)), max(8, round(height * fine)), photo, least)
    image = ImageOps.mirror(image) if rng.random() < 0.5 else image
    image = ImageOps.flip(image) if rng.random() < 0.1 else image
    style = float(rng.random())
    if style < 0.06:
        image = _two_tones(rng, image)
    elif style < 0.85:
        image = _recoloured(rng, image, hue=15.0, any_hue=0.25, cast=0.15)
    soft = float(rng.random())
    if soft < 0.1:
        image = image.filter(ImageFilter.BoxBlur(float(rng.uniform(0.5, 3.0))))
    elif soft < 0.15:
        image = ImageOps.posterize(image, int(rng.integers(2, 5)))
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def blend_photos(rng: Generator, image: Image.Image, other: Image.Image) -> Image.Image:
    """Two parts of photographs of a size, one through the other."""
    return Image.blend(image, other, float(rng.uniform(0.2, 0.5)))


def _restyled(rng: Generator, inks: Image.Image, alpha: Image.Image, which: float) -> Image.Image:
    """Grey, in two tones, in outlines on one colour, or one colour alone, by `which`, from 0 to 1."""
    if which < 0.3:
        return inks.convert("L").convert("RGB")
    if which < 0.65:
        return _two_tones(rng, inks)
    light, dark = _tones(rng)
    if which > 0.92:  # its shape alone
        return Image.new("RGB", inks.size, dark)
    flat = Image.new("L", inks.size, 255)
    flat.paste(inks.convert("L"), mask=alpha)
    lines = flat.filter(ImageFilter.FIND_EDGES).point(lambda value: min(255, 4 * value))
    return ImageOps.colorize(lines, light, dark)


def _two_tones(rng: Generator, image: Image.Image) -> Image.Image:
    light, dark = _tones(rng)
    return ImageOps.colorize(ImageOps.autocontrast(image.convert("L")), dark, light)


def _tones(rng: Generator) -> tuple[RGB, RGB]:
    hue, other = rng.uniform(0, 360, size=2)
    return hsv(float(hue), rng.uniform(0, 0.5), rng.uniform(0.8, 1.0)), hsv(
        float(other), rng.random(), rng.uniform(0, 0.45)
    )


def _recoloured(rng: Generator, image: Image.Image, *, hue: float, any_hue: float, cast: float = 0.0) -> Image.Image:
    """Other hues by up to `hue` degrees, any in the share `any_hue`; other light and contrast; a cast."""
    turn = float(rng.uniform(-180, 180) if rng.random() < any_hue else rng.uniform(-hue, hue))
    grey = cast > 0 and rng.random() < 0.15
    saturation = 0.0 if grey else float(rng.uniform(0.5, 1.5))
    contrast, light = float(rng.uniform(0.65, 1.25)), float(rng.uniform(-25, 25))
    matrix = saturation * (_hue_turn(turn) - _GREY) + _GREY
    matrix = contrast * rng.uniform(1 - cast, 1 + cast, size=(3, 1)) * matrix
    offset = 128 * (1 - contrast) + light
    rows = np.concatenate((matrix, np.full((3, 1), offset)), axis=1)
    return image.convert("RGB", tuple(rows.ravel().tolist()))


def _hue_turn(degrees: float) -> np.ndarray:
    """[3, 3]: the turn of RGB about its grey axis (Rodrigues' formula)."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees)) / np.sqrt(3)
    cross = np.array(((0, -1, 1), (1, 0, -1), (-1, 1, 0)), float)
    return c * np.eye(3) + s * cross + (1 - c) / 3


def _bent(rng: Generator, image: Image.Image) -> Image.Image:
    """Turned, sheared and stretched, on a canvas that holds all of it."""
    angle, shear = np.radians(rng.uniform(-_TURN, _TURN)), rng.uniform(-_SHEAR, _SHEAR)
    stretch = float(np.exp(rng.uniform(-_STRETCH, _STRETCH)) ** 0.5)
    c, s = np.cos(angle), np.sin(angle)
    forward = np.array(((c, -s), (s, c))) @ np.array(((1, shear), (0, 1))) @ np.diag((stretch, 1 / stretch))
    wide, high = (np.abs(forward) @ np.array(image.size)).tolist()
    size = (max(1, round(wide)), max(1, round(high)))
    return _mapped(image, size, np.linalg.inv(forward), np.array(image.size) / 2)


def _part(rng: Generator, width: int, height: int, photo: Image.Image, least: float) -> Image.Image:
    """A part of the photograph, turned by any quarter, or by a few degrees, or not at all."""
    if rng.random() < 0.12:
        photo = photo.transpose((Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)[int(rng.integers(2))])
    angle = np.radians(rng.uniform(-30, 30)) if rng.random() < 0.3 else 0.0
    c, s = float(np.cos(angle)), float(np.sin(angle))
    reach_x, reach_y = width * c + height * abs(s), width * abs(s) + height * c
    scale = min(photo.width / reach_x, photo.height / reach_y) * least ** float(rng.random())
    x, y = (
        scale * reach / 2 + rng.random() * (edge - scale * reach)
        for reach, edge in ((reach_x, photo.width), (reach_y, photo.height))
    )
    if angle == 0.0:
        box: Box = (x - scale * width / 2, y - scale * height / 2, x + scale * width / 2, y + scale * height / 2)
        box = (max(0.0, box[0]), max(0.0, box[1]), min(photo.width, box[2]), min(photo.height, box[3]))
        return photo.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    factor = max(1, int(scale))  # else pixels would be passed over
    if factor > 1:
        photo, scale, x, y = photo.reduce(factor), scale / factor, x / factor, y / factor
    return _mapped(photo, (width, height), scale * np.array(((c, -s), (s, c))), np.array((x, y)))


def _mapped(image: Image.Image, size: tuple[int, int], back: np.ndarray, middle: np.ndarray) -> Image.Image:
    """The picture of a size whose middle shows `middle`; what lies d from it shows what lies `back` @ d from that."""
    offset = middle - back @ (np.array(size) / 2)
    matrix = (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1])
    return image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _hide(rng: Generator, image: Image.Image) -> None:
    """A side of it, or a spot of it, is not there, as if something were before it."""
    wide, high = image.size
    x, y = (float(rng.uniform(0.1, _HIDDEN)) * edge for edge in image.size)
    side = int(rng.integers(5))
    boxes: list[Box] = [(0, 0, x, high), (wide - x, 0, wide, high), (0, 0, wide, y), (0, high - y, wide, high)]
    if side < len(boxes):
        image.paste((0, 0, 0, 0), tuple(round(edge) for edge in boxes[side]))  # type: ignore[arg-type]
        return
    left, top = rng.random() * (wide - x), rng.random() * (high - y)
    pen = ImageDraw.Draw(image)
    (pen.ellipse if rng.random() < 0.5 else pen.rectangle)((left, top, left + x, top + y), fill=(0, 0, 0, 0))
