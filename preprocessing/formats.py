"""Which files are images: by their names."""

from __future__ import annotations

import os

# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg",
    ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
))
# fmt: on


def has_image_suffix(name: str) -> bool:
    """Whether a file of this name is taken for an image where nobody has named it, as in a folder."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
