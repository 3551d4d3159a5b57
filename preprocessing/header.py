"""The size of an upright image from its header, without its pixels."""

from __future__ import annotations

import os
import struct
from typing import IO

from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

_ORIENTATION = 0x0112  # the EXIF tag; values from 5 on turn the image by 90 degrees
_WIDTH, _HEIGHT = 256, 257  # TIFF tags

_PLAIN = frozenset(("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"))
"""Formats whose header has the size that the decoder gives. An icon, for one, has that of the picture inside."""


def orientation(image: ImageFile.ImageFile) -> int | None:
    """What EXIF, or else XMP, says of the way up, as far as it was read. Damaged metadata say nothing of the pixels."""
    try:
        # Not PNG's own, which decodes the pixels to look for metadata behind them.
        return Image.Image.getexif(image).get(_ORIENTATION)
    except Exception:
        return None


def upright_size(image: ImageFile.ImageFile, file: IO[bytes]) -> tuple[int, int] | None:
    """(width, height) in pixels that `load_image` will give; None where only decoding can tell.

    Args:
        image: opened from `file` and not loaded.
        file: seekable; where it stands is not kept.
    """
    if image.format not in _PLAIN or (image.format == "PNG" and not _ends_with_pixels(file)):
        return None
    width, height = image.size
    if isinstance(image, TiffImageFile):  # some versions of Pillow have turned this size, others have not
        width, height = image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
    turned = orientation(image)
    return (height, width) if turned is not None and 5 <= turned <= 8 else (width, height)


def _ends_with_pixels(file: IO[bytes]) -> bool:
    """Whether nothing follows the pixels of a PNG file: metadata there may turn the image."""
    file.seek(8)
    pixels = False
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            return True
        if kind == b"IDAT":
            pixels = True
        elif pixels:
            return False
        file.seek(length + 4, os.SEEK_CUR)
    return True
