"""An image from wherever the user has it: one upright 8-bit RGB Pillow image, or an `ImageError` that says why not."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageFile

from preprocessing.alpha import Background, Colour, read_background, warn_of_dropped
from preprocessing.errors import ImageError
from preprocessing.formats import FORMATS, open_encoded, refusal
from preprocessing.header import orientation, upright_size
from preprocessing.lazy import LazyImage
from preprocessing.locks import lock_of
from preprocessing.pixels import from_array, to_rgb
from preprocessing.quiet import quiet_pillow
from preprocessing.sources import ImageSource, label_of, open_source

MAX_PIXELS = 178_956_970
"""Largest accepted image, in pixels (13 377 x 13 377): the size at which Pillow too, as shipped, refuses to decode."""

MAX_SIDE = 100_000
"""Largest accepted width or height, in pixels: beyond it, resizing a one-pixel line would take gigabytes."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(source: ImageSource, *, name: str | None = None, background: Background = None) -> Image.Image:
    """Read `source` as an upright RGB image.

    - Encoded images (path, URL, bytes, and Pillow images as `Image.open` returned them) are turned upright by their
      EXIF or XMP orientation. Any other Pillow image is taken as it looks: whoever made it has decided on that.
    - Modes become RGB as `Image.convert("RGB")` does it, as in the released recipe: transparency is dropped. With a
      `background`, transparent images are laid on it, as Pillow's `alpha_composite` does it. Without one, the first
      image that dropping changes visibly is warned of.
    - 16-bit images are scaled to 8 bits. The released recipe clips them, which turns nearly all of them white. The
      32-bit mode I counts as 16-bit when any value exceeds 255, and is clipped to 8 bits otherwise.
    - Floating-point pixels (arrays, and the mode F of TIFF and PFM files) go from 0.0, black, to 1.0, white. Others are
      refused, for they may mean anything: 0 to 255, a temperature, a normalised tensor.
    - Of an animated file, the first frame is read; of a Pillow image, the frame it is at.
    - Files are opened in the formats of `preprocessing.formats.FORMATS` alone.

    Several threads may read the same Pillow image or open file; neither is closed, and a file stands where it stood.

    Args:
        source: see `ImageSource`. An RGB Pillow image comes back as it is, without a copy.
        name: what errors call an image that has no path or URL, such as "image 2".
        background: see `Background`.

    Raises:
        ImageError: naming the file and the cause.
        InputError: if `background` is not a colour.
    """
    ground = read_background(background)
    if isinstance(source, LazyImage):
        return source.make()
    label = label_of(source) or name or "image"
    if isinstance(source, np.ndarray | torch.Tensor):
        _check_size(_array_size(source), label)  # before a copy is made of it
        return _decode(from_array(source, label), label, ground)
    if isinstance(source, Image.Image):
        with _alone(source):
            return _decode(source, label, ground)
    with open_source(source, label) as file:
        return read_image(file, label, ground)


def read_image(file: IO[bytes], label: str, ground: Colour | None) -> Image.Image:
    """`load_image` of an encoded file that is open, at its start; `label` is what errors call it."""
    return _decode(_open(file, label), label, ground)


def image_size(source: ImageSource, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) in pixels of what `load_image` gives, from the header where that can tell.

    Raises ImageError as `load_image` does, but for damage in pixels that were not decoded; also for an encoded image of
    more than `max_pixels`, which is not decoded then.
    """
    if isinstance(source, LazyImage):
        return source.size
    if isinstance(source, Image.Image | np.ndarray | torch.Tensor):
        return load_image(source, name=name).size
    label = label_of(source) or name or "image"
    with open_source(source, label) as file, quiet_pillow:
        image = _open(file, label, max_pixels)
        size = upright_size(image, file)
        if size is None:
            _check_size(image.size, label, max_pixels)
            size = _decode(image, label, None).size
        _check_size(size, label, max_pixels)
        return size


def _open(file: IO[bytes], label: str, most: int = MAX_PIXELS) -> ImageFile.ImageFile:
    try:
        return open_encoded(file, label)
    except Image.DecompressionBombError:
        raise ImageError(f"{label}: {_too_large(most)}") from None


def _alone(image: Image.Image) -> AbstractContextManager[object]:
    """Holds other threads off an image that may read from its file yet."""
    return lock_of(image) if isinstance(image, ImageFile.ImageFile) else nullcontext()


def _decode(image: Image.Image, label: str, ground: Colour | None) -> Image.Image:
    """Pixels of a Pillow image, upright and RGB, transparent ones on `ground` if there is one."""
    _check_size(image.size, label)
    if image.format not in FORMATS and _is_unread(image):
        raise ImageError(f"{label}: {refusal(str(image.format))}")
    with quiet_pillow:
        # Pillow's decoders raise almost anything on damaged data, from struct.error to SyntaxError.
        try:
            image.load()
        except Exception as error:
            raise ImageError(f"{label}: truncated or damaged {image.format or 'image'} data ({error})") from None
        try:
            upright = _upright(image)
            pixels = to_rgb(upright, ground, label)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"{label}: mode {image.mode} cannot be converted to RGB ({error})") from None
    if ground is None and upright.has_transparency_data:
        warn_of_dropped(upright, label)
    return pixels


def _is_unread(image: Image.Image) -> bool:
    """Whether a decoder has yet to make the pixels."""
    return isinstance(image, ImageFile.StubImageFile) or (isinstance(image, ImageFile.ImageFile) and bool(image.tile))


def _array_size(array: np.ndarray | torch.Tensor) -> tuple[int, int]:
    """The two longest sides: wherever the channels are, no side is shorter than these."""
    sides = sorted(array.shape)[-2:]
    return (sides[0], sides[1]) if len(sides) == 2 else (1, 1)


def _check_size(size: tuple[int, int], label: str, most: int = MAX_PIXELS) -> None:
    width, height = size
    if 0 in size:
        raise ImageError(f"{label}: the image has no pixels ({width} x {height})")
    if width * height > most or max(size) > MAX_SIDE:
        raise ImageError(f"{label}: {width} x {height}, {_too_large(most)}")


def _too_large(most: int = MAX_PIXELS) -> str:
    return f"over the limit of {most // 10**6} million pixels and {MAX_SIDE} a side; resize it first"


def _upright(image: Image.Image) -> Image.Image:
    way = _UPRIGHT.get(orientation(image) or 1) if isinstance(image, ImageFile.ImageFile) else None
    return image if way is None else image.transpose(way)
