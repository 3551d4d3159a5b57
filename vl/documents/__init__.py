"""Documents as messages: text files, images, and PDFs whose pages are rendered when the model comes to them."""

from __future__ import annotations

from vl.documents.reading import PAGE_SIDE, read_documents

__all__ = ["PAGE_SIDE", "read_documents"]
