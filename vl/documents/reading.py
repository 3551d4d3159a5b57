"""What a file is, by what is in it, and the message that it becomes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from preprocessing.errors import ImageError, InputError
from preprocessing.fetch import is_url
from preprocessing.formats import begins_as_image, open_encoded
from preprocessing.sources import from_file_url, local_path
from vl.documents.pdf import PAGE_SIDE, begins_as_pdf, open_pdf
from vl.documents.text import read_text

_HEAD = 4096  # bytes by which a file is told
_NEW_SUBFILE_TYPE = 254  # TIFF's tag, of which bit 0 says that an image is a smaller copy of another

Document = str | os.PathLike[str]


def read_documents(documents: Sequence[Document], *, page_side: int = PAGE_SIDE) -> list[dict[str, Any]]:
    """A user's message for each document: its name, then its text, its image, or its pages as images.

    Args:
        documents: paths of text files (UTF-8, or UTF-16 with its mark), PDFs and images.
        page_side: pixels of the longer side of a PDF's pages.

    Raises:
        InputError: naming the file, and the page, that cannot be read, and why.
    """
    if isinstance(page_side, bool) or not isinstance(page_side, int) or not 1 <= page_side <= 8192:
        raise InputError(f"page_side must be a whole number of pixels from 1 to 8192, not {page_side!r:.80}")
    return [_message(_path(document), page_side) for document in documents]


def _path(document: Document) -> Path:
    path = local_path(document)
    if not path:
        raise InputError("the path of a document is empty: name a file")
    if path[:5].lower() == "file:":
        try:
            return Path(from_file_url(path, f"{path:.200}"))
        except ImageError as error:
            raise InputError(str(error)) from None
    if is_url(path):
        raise InputError(f"{path:.200} is a URL, and documents are read from files: download it first")
    return Path(path)


def _message(path: Path, page_side: int) -> dict[str, Any]:
    head = _head(path)
    if begins_as_pdf(head):
        pages = open_pdf(path, page_side)
        parts = [_text(f"{path.name}, {len(pages)} page{'s' if len(pages) > 1 else ''}\n")]
        for page in pages:
            parts += [_text(f"Page {page.number}:\n"), _image(page), _text("\n")]
    elif begins_as_image(head):
        _check_pages(path)
        parts = [_text(f"{path.name}\n"), _image(path)]
    else:
        parts = [_text(f"{path.name}\n\n"), _text(read_text(path))]
    return {"role": "user", "content": parts}


def _head(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder: name the files in it that are to be read")
        if path.exists() and not path.is_file():  # it would be read twice, or for ever
            raise InputError(f"{path} is a pipe or a device, and no file: write what comes from it into a file")
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except (OSError, ValueError) as error:  # a name with a NUL character
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); check the path and its permissions") from None
    if not head:
        raise InputError(f"{path} is empty: there is nothing to read in it")
    return head


def _check_pages(path: Path) -> None:
    """Raises InputError if an image is the first of several pages: the others would not be read, and nobody told.

    An animation's pictures and a photograph's previews are no pages.
    """
    pages = 1
    with suppress(Exception), path.open("rb") as file:  # what is damaged is refused where its pixels are read
        image: Any = open_encoded(file, path.name)
        if image.format == "TIFF" and image.n_frames > 1:
            pages = sum(not _is_preview(image, number) for number in range(image.n_frames))
    if pages > 1:
        raise InputError(
            f"{path} has {pages} pages, of which an image is the first alone: make a PDF of it (tiff2pdf -o out.pdf "
            "in.tif, for one), or name a file for each page"
        )


def _is_preview(image: Any, number: int) -> bool:
    image.seek(number)
    return bool(image.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & 1)


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _image(source: object) -> dict[str, Any]:
    return {"type": "image", "image": source}
