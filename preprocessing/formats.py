"""Which files are images: by their names, and by what is in them.

Pillow opens some fifty formats, and for a few of them it starts another program (Ghostscript for EPS), or hands the
file to the system (WMF on Windows) or to whatever library has registered itself. Only the formats listed here are
opened: their decoders read the pixels from the file itself.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import IO

from PIL import Image, ImageFile, UnidentifiedImageError

from preprocessing.errors import ImageError
from preprocessing.quiet import quiet_pillow

# fmt: off
COMMON_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM")  # Pillow knows these from the start; the rest take it 40 ms

FORMATS = frozenset((
    *COMMON_FORMATS, "AVIF", "CUR", "DDS", "DIB", "HEIF", "ICNS", "ICO", "JPEG2000", "MPO", "MSP", "PCX", "PSD", "QOI",
    "SGI", "TGA", "TIFF", "WEBP", "XBM", "XPM",
))
"""Names of the formats that are opened, as Pillow has them. HEIF (`.heic`) needs the package pillow-heif."""

IMAGE_SUFFIXES = frozenset((
    ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg",
    ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
))
"""Names of files that are taken for images where nobody has named them, as in a folder; see `has_image_suffix`."""

HEIF_SUFFIXES = frozenset((".heic", ".heif", ".hif"))
# fmt: on

PLUGIN = "pip install pillow-heif"

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    **{b"BZh%d1AY&SY" % level: "bzip2" for level in range(1, 10)},
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
}
_AVIF_BRANDS = (b"avif", b"avis")


def has_image_suffix(name: str) -> bool:
    """Whether a file of this name is taken for an image; `.heic` is where pillow-heif is installed."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in IMAGE_SUFFIXES or (suffix in HEIF_SUFFIXES and find_spec("pillow_heif") is not None)


def open_encoded(file: IO[bytes], label: str) -> ImageFile.ImageFile:
    """The image in a file, its header read and its pixels not yet.

    Raises ImageError for an empty file, one that holds no image, and a format that is not among `FORMATS`.
    """
    try:
        with quiet_pillow:
            return _open(file)
    except UnidentifiedImageError:
        raise ImageError(f"{label}: {_why_not(file)}") from None
    except Image.DecompressionBombError:
        raise  # the caller knows the limit
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data
        raise ImageError(f"{label}: damaged image ({error})") from None


def _open(file: IO[bytes]) -> ImageFile.ImageFile:
    try:
        return Image.open(file, formats=COMMON_FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        if _brand(file.read(16)) == "HEIF":
            _register_heif()
        Image.init()
        file.seek(0)
        return Image.open(file, formats=[name for name in Image.ID if name in FORMATS])


def _brand(prefix: bytes) -> str | None:
    """HEIF or AVIF, by the first 16 bytes of a file."""
    if prefix[4:8] != b"ftyp":
        return None
    return "HEIF" if prefix[8:12] in _HEIF_BRANDS else "AVIF" if prefix[8:12] in _AVIF_BRANDS else None


def _register_heif() -> None:
    try:
        plugin = import_module("pillow_heif")
    except ImportError:
        return
    plugin.register_heif_opener()


def begins_as_image(prefix: bytes) -> bool:
    """Whether the first 16 bytes of a file are those of an image format, opened here or not."""
    if not prefix:
        return False
    Image.init()
    return _brand(prefix) is not None or any(_accepts(name, prefix) for name in Image.ID)


def compression_of(prefix: bytes) -> str | None:
    """By what a file is compressed that begins so, such as gzip; None if by nothing that is known."""
    return next((kind for beginning, kind in _COMPRESSED.items() if prefix.startswith(beginning)), None)


def _accepts(name: str, prefix: bytes) -> bool:
    """Whether a file that begins with `prefix` claims to be of a format that Pillow knows."""
    _, accept = Image.OPEN[name]
    try:
        return accept is not None and accept(prefix) is True
    except Exception:  # too short a prefix for it
        return False


def _why_not(file: IO[bytes]) -> str:
    """Why a file was not opened."""
    file.seek(0)
    prefix = file.read(16)
    if not prefix:
        return "the file is empty"
    brand = _brand(prefix)
    if brand is not None and brand not in Image.OPEN:
        return f"{brand} images need a plugin: {PLUGIN if brand == 'HEIF' else 'pip install --upgrade pillow'}"
    if (kind := compression_of(prefix)) is not None:
        return f"not an image but compressed, by {kind}: unpack it"
    for name in Image.ID:
        if name not in FORMATS and _accepts(name, prefix):
            return refusal(name)
    for name in Image.ID:
        if name in FORMATS and _accepts(name, prefix):
            return (
                f"begins as {name} does, but is damaged, cut off or of a kind that Pillow cannot read; download it "
                "again, or convert it to PNG, JPEG or WebP"
            )
    return "not an image, or a format that Pillow cannot read; convert it to PNG, JPEG or WebP"


def refusal(name: str) -> str:
    """What is said of a format that is not opened."""
    return f"{name} files are not opened, to be safe from decoders that run other programs; convert it to PNG"
