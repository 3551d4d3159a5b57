"""Images from every source and in every mode, against Pillow; and what is said of those that cannot be read."""

from __future__ import annotations

import base64
import socket
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from preprocessing import ImageError, fetch, image_size, load_image
from preprocessing.images import MAX_PIXELS

WIDTH, HEIGHT = 24, 16
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
RGB = Image.fromarray(NOISE[:, :, :3])


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.mode == b.mode == "RGB" and np.array_equal(np.asarray(a), np.asarray(b))


PNG = encoded(RGB)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/missing.png":
                return self.send_error(404)
            body = {"/a%20b.png": PNG, "/page.html": b"<html>", "/short.png": PNG}.get(self.path, b"")
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + 10 * (self.path == "/short.png")))
            self.end_headers()
            self.wfile.write(body)
            return None

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("no_proxy", "127.0.0.1")
            yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


def test_every_source_gives_the_same_pixels(tmp_path: Path, server: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    data = base64.b64encode(PNG).decode()
    sources = [path, str(path), PNG, bytearray(PNG), memoryview(PNG), RGB, Image.open(path), np.asarray(RGB)]
    sources += [f"{server}/a b.png", f"data:image/png;base64,{data}", f"DATA:;base64,{data[:20]}%0A{data[20:]}"]
    sources += [torch.from_numpy(np.array(RGB)), torch.from_numpy(np.array(RGB)).permute(2, 0, 1)]
    for source in sources:
        assert same(load_image(source), RGB), source


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
@pytest.mark.filterwarnings("ignore:.* is partly transparent")
def test_modes_convert_as_pillow_does(mode: str) -> None:
    image = Image.fromarray(NOISE).convert(mode)
    assert same(load_image(image), image.convert("RGB"))


@pytest.mark.parametrize(
    ("mode", "form"),
    [("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("P", "GIF"), ("RGBA", "WEBP"), ("CMYK", "JPEG")],
)
@pytest.mark.filterwarnings("ignore:Palette images")
def test_encoded_modes_convert_as_pillow_does(mode: str, form: str) -> None:
    content = encoded(Image.fromarray(NOISE).convert(mode), form)
    assert same(load_image(content), Image.open(BytesIO(content)).convert("RGB"))


def test_palette_with_transparency_is_silent() -> None:
    content = encoded(RGB.convert("P"), transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_image(content)
        with pytest.warns(UserWarning, match="Transparency"):  # and the caller's own filters still hold
            expected = Image.open(BytesIO(content)).convert("RGB")
    assert same(loaded, expected)


def test_filters_survive_threads() -> None:
    content = encoded(RGB.convert("P"), transparency=bytes(range(256)))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(load_image, [content] * 200))) == 200
    assert list(warnings.filters) == before


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "int32"])
def test_sixteen_bits_are_scaled(dtype: str) -> None:
    values = np.linspace(0, 65535, 4096).astype(dtype).reshape(64, 64)
    expected = np.round(values.astype(np.float64) / 257).astype(np.uint8)
    loaded = np.asarray(load_image(Image.fromarray(values)))
    assert all(np.array_equal(loaded[:, :, c], expected) for c in range(3))


def test_sixteen_bit_files_are_scaled() -> None:
    values = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    expected = np.round(values / 257).astype(np.uint8)
    for form in ("PNG", "TIFF"):
        assert np.array_equal(np.asarray(load_image(encoded(Image.fromarray(values), form)))[:, :, 0], expected)


def test_small_values_in_32_bits_are_8_bits() -> None:
    image = Image.fromarray(np.arange(-10, 246).reshape(16, 16).astype("int32"))
    assert same(load_image(image), image.convert("RGB"))


@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for form in ("PNG", "JPEG", "TIFF"):
        content = encoded(RGB, form, exif=exif)
        expected = ImageOps.exif_transpose(Image.open(BytesIO(content))).convert("RGB")
        assert same(load_image(content), expected)
        assert same(load_image(Image.open(BytesIO(content))), expected)
        assert same(load_image(load_image(content)), expected)
    derived = Image.open(BytesIO(encoded(RGB, exif=exif))).copy()
    assert same(load_image(derived), RGB), "a derived image is taken as it looks"


def test_damaged_exif_is_ignored() -> None:
    assert same(load_image(encoded(RGB, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")), RGB)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animated_files_give_the_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "green", "blue")]
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    assert Image.open(BytesIO(content)).n_frames == 3
    assert np.abs(np.asarray(load_image(content)).astype(int) - np.asarray(frames[0])).max() <= 2


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_arrays(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = Image.fromarray(array.squeeze()).convert("RGB")
    assert same(load_image(array), expected)
    assert same(load_image(np.asfortranarray(array)), expected)
    assert same(load_image(torch.from_numpy(array)), expected)
    if array.ndim == 3:
        assert same(load_image(torch.from_numpy(array).permute(2, 0, 1)), expected)


@pytest.mark.parametrize(
    ("array", "cause"),
    [
        (np.zeros((4, 4, 3), np.int64), "uint8, uint16, bool or floating point, got int64"),
        (torch.zeros(3, 4, 4, dtype=torch.complex64), "floating point, got torch.complex64"),
        (np.full((4, 4), None), "got object"),
        (np.zeros((4, 4, 2), np.uint8), r"\[4, 4, 2\]"),
        (np.zeros((3, 9, 9), np.uint8), r"\[3, 9, 9\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"\[1, 4, 4, 3\]"),
        (np.zeros(4, np.uint8), r"\[4\]"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (Image.new("RGB", (0, 9)), "no pixels"),
        (Image.new("L", (100_001, 1)), "over the limit"),
        (None, "NoneType"),
        (17, "int"),
    ],
)
def test_wrong_objects(array: Any, cause: str) -> None:
    with pytest.raises(ImageError, match=f"^image 2: .*{cause}"):
        load_image(array, name="image 2")


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


BAD_FILES = [
    ("empty.png", b"", "empty"),
    ("notes.txt", b"hello", "not an image"),
    ("photos.png", b"PK\x03\x04" + bytes(99), "compressed, by zip: unpack it"),
    ("head.jpg", encoded(RGB, "JPEG")[:20], "begins as JPEG does, but is damaged, cut off"),
    ("cut.png", PNG[: len(PNG) // 2], "truncated or damaged PNG"),
    ("cut.jpg", encoded(RGB.resize((400, 400)), "JPEG")[:900], "truncated or damaged JPEG"),
    ("cut.gif", encoded(RGB, "GIF")[:-99], "truncated or damaged GIF"),
    ("bomb.png", bomb(60_000, 60_000), "over the limit"),
    ("line.png", bomb(1_000_000, 2), "over the limit"),
    ("wide.png", bomb(13_000, 13_000), "truncated or damaged"),  # where Pillow warns, we accept the size
]


@pytest.mark.parametrize(("name", "content", "cause"), BAD_FILES, ids=[name for name, *_ in BAD_FILES])
@pytest.mark.filterwarnings("error")
def test_bad_files_are_named(name: str, content: bytes, cause: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError, match=cause) as raised:
        load_image(path)
    assert str(raised.value).startswith(f"{path}: ")
    with pytest.raises(ImageError, match=f"^image 3: .*{cause}"):
        load_image(content, name="image 3")
    with pytest.raises(ImageError, match=f"^image: .*{cause}"):
        load_image("data:image/png;base64," + base64.b64encode(content).decode())


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png: no such file"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="not a file"):
        load_image(tmp_path)
    with pytest.raises(ImageError):
        load_image("a\0b")
    with pytest.raises(ImageError) as raised:
        load_image("x" * 100_000)
    assert len(str(raised.value)) < 300


def test_a_pillow_image_whose_file_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(PNG[:-40])
    with Image.open(path) as image, pytest.raises(ImageError, match=r"cut\.png: truncated or damaged PNG"):
        load_image(image)
    path.write_bytes(PNG)
    with Image.open(path) as image:
        pass
    with pytest.raises(ImageError, match=r"cut\.png: "):
        load_image(image)


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("/missing.png", "404"),
        ("/page.html", "not an image"),
        ("/empty", "empty"),
        ("/short.png", f"{len(PNG)} of {len(PNG) + 10}"),
    ],
)
def test_bad_urls(server: str, path: str, cause: str) -> None:
    with pytest.raises(ImageError, match=f"^{server}{path}: .*{cause}"):
        load_image(server + path)


def test_url_limits(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="cannot be downloaded"):
        load_image("http://127.0.0.1:9/a.png")
    with pytest.raises(ImageError, match="cannot be downloaded"):
        load_image("http://[::1/a.png")
    monkeypatch.setattr(fetch, "MAX_BYTES", 10)
    with pytest.raises(ImageError, match="larger than"):
        load_image(f"{server}/a b.png")
    with pytest.raises(ImageError, match="larger than"):
        load_image("data:;base64," + "A" * 100)


def test_a_silent_server_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT_S", 0.2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ImageError, match="no answer within"):
        load_image(f"http://127.0.0.1:{silent.getsockname()[1]}/a.png")


@pytest.mark.parametrize("url", ["data:image/png", "data:image/png;base64,%%%", "data:image/png;base64,abc"])
def test_bad_data_urls(url: str) -> None:
    with pytest.raises(ImageError, match=r"^image 1: .*data URL"):
        load_image(url, name="image 1")


@given(
    st.integers(0, len(PNG) - 1), st.integers(0, 255), st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
)
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")  # the latter may be of an earlier test's
def test_damage_is_an_image_error_or_an_image(position: int, value: int, form: str) -> None:
    content = bytearray(encoded(RGB, form))
    content[position % len(content)] = value
    try:
        image = load_image(bytes(content))
    except ImageError:
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= MAX_PIXELS


def test_no_file_stays_open(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(PNG)
    bad.write_bytes(PNG[:60])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        image = load_image(good)
        with pytest.raises(ImageError):
            load_image(bad)
        descriptors = Path("/proc/self/fd")
        if descriptors.exists():
            opened = {str(link.resolve()) for link in descriptors.iterdir()}
            assert not opened & {str(good), str(bad)}
    assert same(image, RGB)


@pytest.mark.parametrize("kind", ["PNG", "PCX", "TGA"])
def test_a_size_is_refused_before_pixels_are_made(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = BytesIO()
    Image.new("RGB", (200, 100)).save(file, kind)
    assert image_size(file.getvalue(), max_pixels=20_000) == image_size(file.getvalue())
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match=r"image: \d+ x \d+, over the limit"):
        image_size(file.getvalue(), max_pixels=1_000)
