"""An image from wherever the user has it: one upright 8-bit RGB Pillow image, or an `ImageError` that says why not."""

from __future__ import annotations

import os
import threading
import warnings
from io import BytesIO
from typing import IO, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError

from preprocessing.alpha import Background, Colour, read_background, warn_of_dropped
from preprocessing.errors import ImageError
from preprocessing.fetch import fetch, is_url
from preprocessing.pixels import from_array, to_rgb

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | torch.Tensor
"""A path, an http(s) or data: URL, an encoded file's bytes, a Pillow image, or a uint8 array.

Arrays are [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA); tensors also [1, H, W], [3, H, W] or [4, H, W].
"""

MAX_PIXELS = 178_956_970
"""Largest accepted image, in pixels (13 377 x 13 377): the size at which Pillow too, as shipped, refuses to decode."""

MAX_SIDE = 100_000
"""Largest accepted width or height, in pixels: beyond it, resizing a one-pixel line would take gigabytes."""

_ORIENTATION = 0x0112  # the EXIF tag
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
      EXIF orientation. Any other Pillow image is taken as it looks: whoever made it has decided on its orientation.
    - Modes become RGB as `Image.convert("RGB")` does it, as in the released recipe: transparency is dropped. With a
      `background`, transparent images are laid on it, as Pillow's `alpha_composite` does it. Without one, the first
      image that dropping changes visibly is warned of.
    - 16-bit images are scaled to 8 bits. The released recipe clips them, which turns nearly all of them white. The
      32-bit modes I and F count as 16-bit when any value exceeds 255, and are clipped to 8 bits otherwise.
    - Of an animated file, the first frame is read; of a Pillow image, the frame it is at.

    Args:
        source: see `ImageSource`. An RGB Pillow image comes back as it is, without a copy.
        name: what errors call an image that has no path or URL, such as "image 2".
        background: see `Background`.

    Raises:
        ImageError: naming the file and the cause.
        InputError: if `background` is not a colour.
    """
    ground = read_background(background)
    label = _label(source) or name or "image"
    if isinstance(source, np.ndarray | torch.Tensor):
        return _decode(from_array(source, label), label, ground)
    if isinstance(source, Image.Image):
        return _decode(source, label, ground)
    if isinstance(source, str) and is_url(source):
        source = fetch(source, label)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_bytes(BytesIO(source), label, ground)
    if isinstance(source, str | os.PathLike):
        return _from_path(source, label, ground)
    raise ImageError(
        f"{label}: cannot read an image from {type(source).__name__}; "
        "pass a path, URL, data URL, bytes, PIL image or uint8 array"
    )


def _label(source: ImageSource) -> str | None:
    """What the user knows the image by, if it has a name of its own."""
    if isinstance(source, Image.Image):
        source = getattr(source, "filename", "")
    if not isinstance(source, str | os.PathLike) or str(source)[:5].lower() == "data:":
        return None
    text = str(source)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _from_path(path: str | os.PathLike[str], label: str, ground: Colour | None) -> Image.Image:
    try:
        if not os.path.exists(path):
            raise ImageError(f"{label}: no such file")
        if not os.path.isfile(path):
            raise ImageError(f"{label}: not a file; pass the path of an image")
        with open(path, "rb") as file:
            return _from_bytes(file, label, ground)
    except (OSError, ValueError) as error:
        raise ImageError(f"{label}: cannot be opened ({getattr(error, 'strerror', None) or error})") from None


def _from_bytes(file: IO[bytes], label: str, ground: Colour | None) -> Image.Image:
    with _quiet_pillow:
        try:
            image = Image.open(file)
        except UnidentifiedImageError:
            file.seek(0, os.SEEK_END)
            if file.tell() == 0:
                raise ImageError(f"{label}: the file is empty") from None
            raise ImageError(
                f"{label}: not an image, or a format that Pillow cannot read; convert it to PNG, JPEG or WebP"
            ) from None
        except Image.DecompressionBombError:
            raise ImageError(f"{label}: {_too_large()}") from None
        except Exception as error:
            raise ImageError(f"{label}: damaged image ({error})") from None
        return _decode(image, label, ground)


def _decode(image: Image.Image, label: str, ground: Colour | None) -> Image.Image:
    """Pixels of a Pillow image, upright and RGB, transparent ones on `ground` if there is one."""
    if 0 in image.size:
        raise ImageError(f"{label}: the image has no pixels ({image.width} x {image.height})")
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise ImageError(f"{label}: {image.width} x {image.height}, {_too_large()}")
    with _quiet_pillow:
        # Pillow's decoders raise almost anything on damaged data, from struct.error to SyntaxError.
        try:
            image.load()
        except Exception as error:
            raise ImageError(f"{label}: truncated or damaged {image.format or 'image'} data ({error})") from None
        try:
            upright = _upright(image)
            pixels = to_rgb(upright, ground)
        except Exception as error:
            raise ImageError(f"{label}: mode {image.mode} cannot be converted to RGB ({error})") from None
        if ground is None and upright.has_transparency_data:
            warn_of_dropped(upright, label)
        return pixels


def _too_large() -> str:
    return f"over the limit of {MAX_PIXELS // 10**6} million pixels and {MAX_SIDE} a side; resize it first"


def _upright(image: Image.Image) -> Image.Image:
    if not isinstance(image, ImageFile.ImageFile):
        return image
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged metadata says nothing about the pixels
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


class _QuietPillow:
    """Silences the warnings that Pillow's modules issue, while any thread is inside.

    `warnings.catch_warnings` swaps global state, so overlapping uses in threads would leave the wrong filters behind:
    the first thread in sets the filter, the last one out restores the caller's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caller = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caller = warnings.catch_warnings()
                self._caller.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caller.__exit__(None, None, None)


_quiet_pillow = _QuietPillow()
