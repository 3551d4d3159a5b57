"""The pages of a PDF as images, rendered by pdfium when they are due."""

from __future__ import annotations

import atexit
import hashlib
import math
import re
import threading
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

from PIL import Image

from preprocessing.errors import InputError
from preprocessing.lazy import LazyImage

PAGE_SIDE = 1344
"""Pixels of a page's longer side: A4 is shown at 950 x 1344, 115 a inch, and costs 7,200 tokens."""

_PDFIUM = threading.RLock()  # it may be used by one thread at a time, whatever the document


def begins_as_pdf(head: bytes) -> bool:
    """Whether a file that begins so is a PDF.

    Readers let other bytes stand before its mark. A text may speak of it, so there the mark begins a line, or follows
    what is no text.
    """
    return re.search(rb"(?:\A|[^\t\x20-\x7e])%PDF-", head[:1024]) is not None


class _Pdf:
    """An open document, until nobody has it, or Python ends: pdfium complains of those that it has to close itself."""

    _all: ClassVar[WeakSet[_Pdf]] = WeakSet()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pdfium = _import_pdfium(path)
        with path.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").digest()
        with _PDFIUM:
            try:
                self._document: Any = self._pdfium.PdfDocument(path)
                self._document.init_forms()  # or what was filled in would be missing
                self.pages = len(self._document)
            except self._pdfium.PdfiumError as error:
                raise InputError(f"{path}: {_why(error, path)}") from None
        self._all.add(self)

    @classmethod
    def close_all(cls) -> None:
        for pdf in list(cls._all):
            pdf.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        document = getattr(self, "_document", None)
        if document is not None:
            with _PDFIUM:
                document.close()

    def size(self, number: int) -> tuple[float, float]:
        """(width, height) of a page as it is shown, in points."""
        with _PDFIUM:
            try:
                width, height = self._document.get_page_size(number - 1)
            except self._pdfium.PdfiumError as error:
                raise self._unreadable(number, error) from None
        if not (0 < width < math.inf and 0 < height < math.inf):
            raise InputError(f"{self.path}, page {number}: its size is {width} x {height} points, and nothing to see")
        return width, height

    def render(self, number: int, scale: float) -> Image.Image:
        with _PDFIUM:
            try:
                page = self._document[number - 1]
                try:
                    return page.render(scale=scale).to_pil().convert("RGB")
                finally:
                    page.close()
            except (self._pdfium.PdfiumError, ValueError) as error:
                raise self._unreadable(number, error) from None

    def _unreadable(self, number: int, error: Exception) -> InputError:
        return InputError(f"{self.path}, page {number}: damaged ({error}); write the file anew, or leave the page out")


class PdfPage(LazyImage):
    """A page, its longer side `side` pixels. `number` counts from 1."""

    def __init__(self, pdf: _Pdf, number: int, side: int) -> None:
        width, height = pdf.size(number)
        self.number, self._pdf = number, pdf
        self._scale = side * (1 - 1e-6) / max(width, height)  # pdfium rounds up
        self.size = (math.ceil(width * self._scale), math.ceil(height * self._scale))
        self.name = f"{pdf.path}, page {number}"
        self.digest = hashlib.sha256(pdf.digest + f"page {number}, {side}".encode()).digest()

    def make(self) -> Image.Image:
        return self._pdf.render(self.number, self._scale)


def open_pdf(path: Path, side: int = PAGE_SIDE) -> list[PdfPage]:
    """The pages of a document, none of them rendered yet.

    Raises:
        InputError: if pypdfium2 is not installed, or the file is encrypted, damaged or without pages.
    """
    pdf = _Pdf(path)
    return [PdfPage(pdf, number, side) for number in range(1, pdf.pages + 1)]


def _import_pdfium(path: Path) -> Any:
    try:
        pdfium = import_module("pypdfium2")
    except ImportError:
        raise InputError(f"{path} is a PDF, which needs pypdfium2: pip install 'minimax-vl[documents]'") from None
    atexit.unregister(_Pdf.close_all)
    atexit.register(_Pdf.close_all)  # after pdfium's own, which then comes later
    return pdfium


def _why(error: Exception, path: Path) -> str:
    """What pdfium says of the file before, too, is still there after one that has no pages."""
    if "password" in str(error).lower() and b"/Encrypt" in path.read_bytes():
        return "encrypted; take the password off first: qpdf --decrypt --password=... in.pdf out.pdf, for one"
    return "no PDF that can be read: damaged, or without pages; write it anew"
