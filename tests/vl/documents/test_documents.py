"""Documents become messages; what cannot be read is named, file and page."""

from __future__ import annotations

import codecs
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forkserver import run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import vl
from preprocessing import load_image
from preprocessing.images import image_size
from vl.documents import read_documents
from vl.documents.pdf import open_pdf

from .pdfs import Page, write_pdf

A4 = Page(595.28, 841.89, (0.0, 0.0, 1.0))


def texts(message: dict[str, Any]) -> str:
    return "".join(part.get("text", "<image>") for part in message["content"])


def test_a_message_for_each_document(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("One.\r\nTwo.\n")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    write_pdf(tmp_path / "two.pdf", [A4, Page(200, 100)])
    messages = read_documents([str(tmp_path / "notes.txt"), tmp_path / "two.pdf", tmp_path / "red.png"])
    assert [message["role"] for message in messages] == ["user"] * 3
    assert [texts(message) for message in messages] == [
        "notes.txt\n\nOne.\nTwo.\n",
        "two.pdf, 2 pages\nPage 1:\n<image>\nPage 2:\n<image>\n",
        "red.png\n<image>",
    ]
    pages = [part["image"] for part in messages[1]["content"] if part["type"] == "image"]
    assert [page.size for page in pages] == [(951, 1344), (1344, 672)]
    assert image_size(messages[2]["content"][1]["image"]) == (40, 30)


@given(
    width=st.floats(1, 14400),
    height=st.floats(1, 14400),
    side=st.integers(1, 300),
    rotate=st.sampled_from([0, 90, 180]),
)
def test_a_page_is_of_the_size_that_was_told(
    tmp_path_factory: pytest.TempPathFactory, width: float, height: float, side: int, rotate: int
) -> None:
    path = write_pdf(
        tmp_path_factory.mktemp("pdf") / "page.pdf", [Page(round(width, 2), round(height, 2), rotate=rotate)]
    )
    (page,) = open_pdf(path, side)
    assert max(page.size) == side
    assert page.make().size == page.size == image_size(page)


def test_a_page_shows_what_is_on_it(tmp_path: Path) -> None:
    (page, turned) = open_pdf(write_pdf(tmp_path / "page.pdf", [A4, Page(400, 200, (0, 1, 0), rotate=90)]), 500)
    shown = np.asarray(load_image(page))
    assert shown.shape == (500, 354, 3)
    assert (shown[:249] == (0, 0, 255)).all()
    assert (shown[252:, :176] == 0).all()
    assert (shown[252:, 178:] == (0, 0, 255)).all()
    assert turned.size == (250, 500)
    assert (np.asarray(turned.make())[:248, :123] == 0).all()  # the lower left, turned clockwise


def test_equal_digests_say_equal_pixels(tmp_path: Path) -> None:
    first = open_pdf(write_pdf(tmp_path / "a.pdf", [A4, A4]), 100)
    same = open_pdf(write_pdf(tmp_path / "b.pdf", [A4, A4]), 100)
    others = [*open_pdf(tmp_path / "a.pdf", 101), *open_pdf(write_pdf(tmp_path / "c.pdf", [A4]), 100)]
    assert [page.digest for page in first] == [page.digest for page in same]
    assert len({page.digest for page in [*first, *others]}) == 5


@pytest.mark.parametrize(
    ("contents", "told"),
    [
        (b"", "is empty"),
        (b" \n\t", "nothing but white space"),
        ("Erste Zeile\nGrüße".encode("latin-1"), r"line 2: not UTF-8 \(byte 0xfc.*iconv"),
        (codecs.BOM_UTF16_LE + b"a", "line 1: not UTF-16"),
        (b"PK\x03\x04\x00\x00word", "no text, PDF or image"),
        (b"%PDF-1.7\nbroken", "no PDF that can be read"),
        (b"HTTP/1.1 200 OK\r\n%PDF-1.7\nbroken", "no PDF that can be read"),
        (codecs.BOM_UTF8 + b"%PDF-1.7\nbroken", "no PDF that can be read"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, contents: bytes, told: str) -> None:
    path = tmp_path / "document"
    path.write_bytes(contents)
    with pytest.raises(vl.InputError, match=rf"{path}.*{told}"):
        read_documents([path])


def test_an_image_of_several_pages_is_refused(tmp_path: Path) -> None:
    """Of which a smaller copy is none, nor is a picture of an animation."""
    page, other = Image.new("L", (8, 6)), Image.new("L", (8, 6), 255)
    page.save(tmp_path / "scan.tif", save_all=True, append_images=[other, page])
    with pytest.raises(vl.InputError, match=r"scan\.tif has 3 pages, .* the first alone: make a PDF"):
        read_documents([tmp_path / "scan.tif"])
    other.encoderinfo = {"tiffinfo": {254: 1}}
    page.save(tmp_path / "preview.tif", save_all=True, append_images=[other])
    page.save(tmp_path / "film.gif", save_all=True, append_images=[other])
    for name in ("preview.tif", "film.gif"):
        assert Image.open(tmp_path / name).n_frames == 2  # type: ignore[attr-defined]
        assert texts(read_documents([tmp_path / name])[0]) == f"{name}\n<image>"


def test_a_text_that_speaks_of_pdfs_is_text(tmp_path: Path) -> None:
    path = tmp_path / "a report.txt"
    path.write_text("What a file begins with: %PDF-1.7, for one.")
    for named in (path, path.as_uri()):  # which has %20 for the space
        assert read_documents([named])[0]["content"][1]["text"] == path.read_text()
    with pytest.raises(vl.InputError, match="not of 'elsewhere'"):
        read_documents(["file://elsewhere/report.txt"])


def test_pdfium_has_nothing_to_say_when_python_ends(tmp_path: Path) -> None:
    """It complains of a document that it has to close itself."""
    path = write_pdf(tmp_path / "a.pdf", [A4])
    code = f"from vl.documents import read_documents; kept = read_documents([{str(path)!r}]); print(len(kept))"
    done = run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize("name", ["nowhere.txt", "a\0b"])
def test_a_path_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(vl.InputError, match="cannot be read"):
        read_documents([f"{tmp_path}/{name}"])


def test_encrypted_and_empty_pdfs(tmp_path: Path) -> None:
    key = "00" * 32
    locked = f"/Encrypt << /Filter /Standard /V 1 /R 2 /O <{key}> /U <{key}> /P -4 >> /ID [<00> <00>] "
    with pytest.raises(vl.InputError, match=r"locked\.pdf: encrypted; take the password off"):
        read_documents([write_pdf(tmp_path / "locked.pdf", [A4], locked)])
    with pytest.raises(vl.InputError, match=r"empty\.pdf: no PDF that can be read: damaged, or without pages"):
        read_documents([write_pdf(tmp_path / "empty.pdf", [])])


def test_a_broken_page_is_named(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "three.pdf", [A4, A4, A4])
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"5 0 obj\n<<", b"5 0 obj\n(("))
    with pytest.raises(vl.InputError, match=r"three\.pdf, page 2: damaged"):
        read_documents([path])


def test_without_pypdfium2_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(vl.InputError, match=r"pip install 'minimax-vl\[documents\]'"):
        read_documents([write_pdf(tmp_path / "a.pdf", [A4])])


@pytest.mark.parametrize("side", [0, True, 2.5, 10**6])
def test_a_page_side_out_of_range_is_refused(tmp_path: Path, side: Any) -> None:
    with pytest.raises(vl.InputError, match="page_side must be a whole number"):
        read_documents([write_pdf(tmp_path / "a.pdf", [A4])], page_side=side)


def test_a_url_and_a_folder_are_named_as_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(vl.InputError, match=r"https://example\.org/a\.pdf is a URL.*download it"):
        read_documents(["https://example.org/a.pdf"])
    with pytest.raises(vl.InputError, match="the path of a document is empty"):
        read_documents([""])
    with pytest.raises(vl.InputError, match="is a folder: name the files"):
        read_documents([tmp_path])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
def test_a_pipe_is_refused_before_anything_is_taken_out_of_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(vl.InputError, match="is a pipe or a device"):
        read_documents([tmp_path / "pipe"])
