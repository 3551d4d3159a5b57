"""Which formats are opened, which are refused and why, and sizes from headers against the pixels."""

from __future__ import annotations

import subprocess
import sys
import warnings
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageFile, ImageOps, PngImagePlugin

from preprocessing import IMAGE_SUFFIXES, ImageError, formats, has_image_suffix, image_size, load_image
from preprocessing.formats import FORMATS
from preprocessing.images import MAX_PIXELS

WIDTH, HEIGHT = 24, 16
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
RGB = Image.fromarray(NOISE)


def encoded(image: Image.Image = RGB, form: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


EPS = encoded(form="EPS")
# fmt: off
SAMPLED = (
    "AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "MSP", "PCX", "PNG", "PPM", "QOI",
    "SGI", "TGA", "TIFF", "WEBP", "XBM",
)
# fmt: on
Image.init()
WRITTEN = [form for form in SAMPLED if form in Image.SAVE]  # older versions of Pillow cannot write them all
ONE_BIT = ("MSP", "XBM")


@cache
def sample(form: str) -> bytes:
    image = RGB.resize((128, 128)) if form == "ICNS" else RGB
    several = {"save_all": True, "append_images": [RGB]} if form == "MPO" else {}
    return encoded(image.convert("1") if form in ONE_BIT else image, form, **several)


@pytest.mark.parametrize("form", WRITTEN)
def test_formats_are_read_as_pillow_reads_them(form: str) -> None:
    assert form in FORMATS
    content = sample(form)
    expected = Image.open(BytesIO(content)).convert("RGB")
    assert np.array_equal(np.asarray(load_image(content)), np.asarray(expected))
    assert image_size(content) == expected.size


def test_suffixes_belong_to_formats() -> None:
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in IMAGE_SUFFIXES & known.keys()} <= FORMATS
    assert IMAGE_SUFFIXES - known.keys() <= {".avif"}
    assert has_image_suffix("A.JPEG")
    assert not has_image_suffix("a.eps")


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", refuse)


REFUSED = {
    "EPS": EPS,
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + bytes(100),
    "FITS": b"SIMPLE  =                    T" + b" " * 3000,
    "GRIB": b"GRIB\0\1\0\1" + bytes(100),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "BUFR": b"BUFR" + bytes(100),
}


@pytest.mark.parametrize("form", REFUSED)
@pytest.mark.usefixtures("no_programs")
def test_other_formats_are_refused_by_name(form: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"  # the name does not matter
    path.write_bytes(REFUSED[form])
    for read in (load_image, image_size):
        with pytest.raises(ImageError, match=rf"a\.png: {form} files are not opened.*convert it to PNG"):
            read(path)


@pytest.mark.usefixtures("no_programs")
def test_a_pillow_image_of_a_refused_format(tmp_path: Path) -> None:
    path = tmp_path / "a.eps"
    path.write_bytes(EPS)
    with Image.open(path) as image, pytest.raises(ImageError, match=r"a\.eps: EPS files are not opened"):
        load_image(image)
    path.write_bytes(REFUSED["HDF5"])
    with Image.open(path) as image, pytest.raises(ImageError, match=r"a\.eps: HDF5 files are not opened"):
        load_image(image)


def test_what_the_caller_has_decoded_is_pixels() -> None:
    image = Image.open(BytesIO(EPS))
    image.tile, image.im = [], RGB.im  # as Ghostscript would leave it
    assert np.array_equal(np.asarray(load_image(image)), NOISE)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def test_heic_without_its_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"^image: HEIF images need a plugin: pip install pillow-heif"):
        load_image(HEIC)
    assert not has_image_suffix("a.heic")


def test_avif_without_its_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "OPEN", {k: v for k, v in Image.OPEN.items() if k != "AVIF"})
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "AVIF"])
    with pytest.raises(ImageError, match=r"AVIF images need a plugin: pip install --upgrade pillow"):
        load_image(b"\0\0\0\x18ftypavif\0\0\0\0mif1" + bytes(100))


def test_heic_with_its_plugin() -> None:
    plugin = pytest.importorskip("pillow_heif")
    file = BytesIO()
    plugin.from_pillow(RGB.resize((64, 48))).save(file, quality=95)
    image = load_image(file.getvalue())
    assert image.size == image_size(file) == (64, 48)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(RGB.resize((64, 48)))).mean() < 30
    assert has_image_suffix("a.HEIC")
    with pytest.raises(ImageError):
        load_image(HEIC)


# Sizes from headers


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def xmp(orientation: int) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


def turned(form: str, where: str, orientation: int) -> bytes:
    """An image that EXIF or XMP turns."""
    if where == "exif":
        return encoded(form=form, exif=exif(orientation))
    if form == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp(orientation).decode())
        return encoded(form=form, pnginfo=info)
    if form == "TIFF":
        return encoded(form=form, tiffinfo={700: xmp(orientation)})
    return encoded(form=form, xmp=xmp(orientation))


def behind_the_pixels(png: bytes, kinds: tuple[bytes, ...]) -> bytes:
    """The chunks of some kinds moved to the end, where the format allows them too."""
    chunks, start = [], 8
    while start < len(png):
        length = int.from_bytes(png[start : start + 4], "big") + 12
        chunks.append(png[start : start + length])
        start += length
    late = [chunk for chunk in chunks if chunk[4:8] in kinds]
    assert late
    rest = [chunk for chunk in chunks[:-1] if chunk not in late]
    return png[:8] + b"".join((*rest, *late, chunks[-1]))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("where", ["exif", "xmp"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_header_sizes_are_the_loaded_ones(form: str, where: str, orientation: int, tmp_path: Path) -> None:
    contents = [turned(form, where, orientation)]
    if form == "PNG":
        contents.append(behind_the_pixels(contents[0], (b"eXIf", b"iTXt")))
    if form == "TIFF" and where == "exif":
        contents.append(encoded(form=form, exif=exif(orientation), compression="tiff_lzw"))
    for content in contents:
        reference = Image.open(BytesIO(content))
        reference.load()
        expected = ImageOps.exif_transpose(reference).convert("RGB")
        if where == "exif":  # not all versions of Pillow see all XMP
            assert expected.size == ((HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT))
        path = tmp_path / "a"
        path.write_bytes(content)
        for source in (content, path, BytesIO(content), Image.open(path)):
            assert np.array_equal(np.asarray(load_image(source)), np.asarray(expected))
            assert image_size(source) == expected.size


def test_exif_goes_before_xmp() -> None:
    content = encoded(form="JPEG", exif=exif(1), xmp=xmp(6))
    assert image_size(content) == load_image(content).size == (WIDTH, HEIGHT)


def test_sizes_of_what_has_no_header() -> None:
    assert image_size(NOISE) == image_size(RGB) == (WIDTH, HEIGHT)
    icon = encoded(form="ICO", sizes=[(8, 8), (16, 16)])
    assert image_size(icon) == load_image(icon).size


def test_header_sizes_decode_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("pixels were decoded")

    contents = [turned(form, "exif", 6) for form in ("JPEG", "PNG", "TIFF", "WEBP")] + [encoded(form="GIF")]
    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    for content in contents:
        assert sorted(image_size(content)) == [HEIGHT, WIDTH]


@pytest.mark.parametrize("size", [(60_000, 60_000), (100_001, 2)])
def test_header_sizes_have_the_same_limits(size: tuple[int, int]) -> None:
    header = b"P6\n%d %d\n255\n" % size
    for read in (load_image, image_size):
        with pytest.raises(ImageError, match="over the limit"):
            read(header)


# Damage


@given(st.sampled_from(WRITTEN), st.integers(0, 2**32), st.integers(0, 2**32), st.binary(max_size=8))
@settings(max_examples=300)
def test_damage_is_an_image_error_or_an_image(form: str, position: int, cut: int, patch: bytes) -> None:
    """Some bytes overwritten, then the end cut off, or not."""
    content = bytearray(sample(form))
    position %= len(content)
    content[position : position + len(patch)] = patch
    content = content[: cut % (2 * len(content))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # of what an earlier test left, found in this one
        warnings.filterwarnings("ignore", message=".* is partly transparent")
        image = load_or_none(bytes(content))
    if image is not None:
        assert image.mode == "RGB"
        assert image.width * image.height <= MAX_PIXELS
        assert image_size(bytes(content)) == image.size


STARTS = [b"", b"\xff\xd8\xff", b"II*\0", b"GIF89a", b"P6\n", b"8BPS\0\1", b"BM", b"\0\0\1\0", b"icns", b"DDS "]


@given(st.sampled_from(STARTS), st.binary(max_size=200))
@settings(max_examples=200)
def test_noise_is_an_image_error_or_an_image(start: bytes, noise: bytes) -> None:
    load_or_none(start + noise)


def load_or_none(content: bytes) -> Image.Image | None:
    """The image, or None after an ImageError; any other error passes through."""
    with suppress(ImageError):
        return load_image(content)
    return None
