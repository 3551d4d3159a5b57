"""Every form in which an image may be given, and what is said of those that are none."""

from __future__ import annotations

import base64
import io
import os
import signal
import sys
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from preprocessing import ImageError, Patcher, Processor, load_image
from preprocessing.locks import lock_of
from preprocessing.quiet import quiet_pillow
from preprocessing.sources import kind_of, seen_from

NOISE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
RGB = Image.fromarray(NOISE)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    file = BytesIO()
    image.save(file, form)
    return file.getvalue()


PNG = encoded(RGB)
TEXT = base64.b64encode(PNG).decode()
WRAPPED = "\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76)) + "\n"


def is_noise(source: Any) -> bool:
    return np.array_equal(np.asarray(load_image(source)), NOISE)


class Named(os.PathLike):
    """A path of another library, as bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self.path)


class Pipe(io.RawIOBase):
    """A stream that cannot be rewound and gives little at a time."""

    def __init__(self, content: bytes) -> None:
        self.rest = content

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part, self.rest = self.rest[:7], self.rest[7:]
        buffer[: len(part)] = part
        return len(part)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home me"
    folder.mkdir()
    (folder / "a #1?.png").write_bytes(PNG)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_names(home: Path) -> None:
    path = home / "a #1?.png"
    quoted = path.as_uri()
    assert "%20" in quoted
    sources = ["~/a #1?.png", Path("~/a #1?.png"), "home me/a #1?.png", path, Named(path)]
    sources += [quoted, f"file://{path}", f"FILE://localhost{path}", f"file:{path}", quoted.replace("file://", "file:")]
    assert all(map(is_noise, sources))


def test_an_existing_file_wins(home: Path) -> None:
    names = ["data:x.png", "~", "~x.png", "http:", "file:a.png", "a" * 60, "talks[1].png", "%20.png"]
    for name in names:
        Path(name).write_bytes(PNG)
        assert kind_of(name) == "path"
        assert is_noise(name)
        assert is_noise(Path(name).absolute())


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("file:///nowhere/a.png", "no such file"),
        ("file://server/share/a.png", "not of 'server'"),
        ("file:///C:/photos/a.png", "absolute path"),
        ("file:C:\\photos\\a.png", "absolute path"),
        ("file:a.png", "absolute path"),
        ("file://", "absolute path"),
        ("file:///tmp", "not a file"),
        ("file:///a%00b.png", "no such file|cannot be opened"),
        ("file:///\ud800.png", "not a URL"),
    ],
)
def test_bad_file_urls(url: str, cause: str) -> None:
    with pytest.raises(ImageError, match=f"^file:.*: .*({cause})"):
        load_image(url)


def test_base64_text() -> None:
    sources = [TEXT, TEXT.rstrip("="), WRAPPED, base64.urlsafe_b64encode(PNG).decode()]
    assert all(map(is_noise, sources))
    assert {kind_of(source) for source in sources} == {"base64"}


@pytest.mark.parametrize("text", ["photos/of/a/summer/long/ago/in/a/country/far", "x" * 100_000, TEXT[4:], "A" * 41])
def test_what_is_no_base64_image(text: str) -> None:
    with pytest.raises(ImageError, match="no such file, and read as base64 it is not an image") as raised:
        load_image(text)
    assert len(str(raised.value)) < 300
    assert text[:150] in str(raised.value) or len(text) > 200


def test_open_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    saved = BytesIO()
    RGB.save(saved, "PNG")  # stands at its end
    with path.open("rb") as file, path.open("rb", buffering=0) as raw, tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(PNG)
        for source in (file, raw, spooled, saved):
            before = source.tell()
            assert is_noise(source)
            assert is_noise(source)
            assert source.tell() == before
            assert not source.closed
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", PNG)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive, archive.open("a.png") as member:
        assert is_noise(member)


def test_streams_are_read_once() -> None:
    pipe = Pipe(PNG)
    assert is_noise(pipe)
    with pytest.raises(ImageError, match="nothing is left in the stream; read it once"):
        load_image(pipe)
    assert is_noise(io.BufferedReader(Pipe(PNG)))


def test_data_sets_form(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    for source in ({"bytes": PNG, "path": "gone.png"}, {"bytes": None, "path": str(path)}, {"path": path}):
        assert is_noise(source)
    assert is_noise({"bytes": memoryview(PNG)})
    assert is_noise(memoryview(PNG[::-1])[::-1])
    gone = memoryview(PNG)
    gone.release()
    for source in (gone, {"bytes": gone}):
        with pytest.raises(ImageError, match=r"^image: the memoryview cannot be read .*released"):
            load_image(source)
    with pytest.raises(ImageError, match=r"^gone\.png: not an image"):
        load_image({"bytes": b"hello", "path": "gone.png"})
    for wrong in ({"bytes": None, "path": None}, {}, {"file": "a.png"}, {"bytes": "text"}, {"path": 7}):
        with pytest.raises(ImageError, match=r'^image 2: expected {"bytes": \.\.\., "path": \.\.\.}'):
            load_image(wrong, name="image 2")


@pytest.mark.parametrize(
    ("open_it", "cause"),
    [
        (lambda path: path.open(encoding="latin-1"), "is open as text"),
        (lambda path: io.StringIO("hello"), "is open as text"),
        (lambda path: _closed(path), "cannot be read .*closed"),
        (lambda path: path.with_name("b").open("wb"), "cannot be read"),
        (lambda path: _Reader("text"), r"read\(\) gave str"),
        (lambda path: _Reader(RuntimeError("the server has gone")), "the server has gone"),
    ],
    ids=["text", "StringIO", "closed", "for writing", "str", "raises"],
)
def test_bad_open_files(open_it: Callable[[Path], Any], cause: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    file = open_it(path)
    with pytest.raises(ImageError, match=cause):
        load_image(file)
    file.close()


def _closed(path: Path) -> Any:
    with path.open("rb") as file:
        return file


class _Reader:
    """What another library may give as a file."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def read(self, count: int) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self) -> None:
        pass


def test_size_limit_of_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocessing.fetch.MAX_BYTES", 100)
    for source in (Pipe(PNG), BytesIO(PNG), TEXT):
        with pytest.raises(ImageError, match="larger than the limit"):
            load_image(source)


def test_one_source_in_many_threads(tmp_path: Path) -> None:
    """A lazily opened image, or an open file, is read by one thread at a time and left as it was."""
    pixels = np.random.default_rng(1).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    for form in ("JPEG", "PNG", "TIFF", "WEBP"):
        path = tmp_path / f"a.{form}"
        Image.fromarray(pixels).save(path)
        expected = np.asarray(Image.open(path).convert("RGB"))
        image, file = Image.open(path), BytesIO(path.read_bytes())
        barrier = threading.Barrier(8)

        def load(source: Any, barrier: threading.Barrier = barrier) -> np.ndarray:
            barrier.wait(120)
            return np.asarray(load_image(source))

        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(load, [image] * 4 + [file] * 4):
                assert np.array_equal(found, expected)
        assert np.array_equal(np.asarray(image), expected), "the caller's image can still be used"


def test_one_lazy_image_twice_in_a_turn(tmp_path: Path, checkpoint: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.effect_noise((1500, 1000), 50).convert("RGB").save(path)
    processor = Processor.load(checkpoint, Patcher())
    single = processor([{"role": "user", "content": [{"type": "image", "image": str(path)}]}])
    for source in (Image.open(path), BytesIO(path.read_bytes()), {"bytes": path.read_bytes(), "path": None}):
        inputs = processor([{"role": "user", "content": [{"type": "image", "image": source}] * 3}])
        assert np.array_equal(inputs.tiles, np.concatenate([single.tiles] * 3))


def test_seen_from_a_folder(tmp_path: Path, home: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data:x.png").write_bytes(PNG)
    assert seen_from(folder, "a.png") == str(folder / "a.png")
    assert seen_from(folder, "/a.png") == "/a.png"
    assert seen_from(folder, "data:x.png") == str(folder / "data:x.png")
    assert seen_from(folder, "~/b.png") == str(home / "b.png")
    for name in ("https://example.org/a.png", "data:image/png;base64,AAAA", TEXT, "file:///a.png"):
        assert seen_from(folder, name) == name


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has threads")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_other_threads_load(tmp_path: Path) -> None:
    """A child inherits no lock that a thread of its parent holds, and no silenced warnings."""
    image = Image.open(BytesIO(PNG))
    before = list(warnings.filters)

    def fork() -> int:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(120)
            good = is_noise(image) and list(warnings.filters) == before
            os._exit(0 if good else 1)
        return os.waitpid(child, 0)[1]

    with lock_of(image), quiet_pillow, ThreadPoolExecutor(1) as pool:
        assert pool.submit(fork).result() == 0
