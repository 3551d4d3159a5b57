"""Text that is not all characters: as the tokenizer takes it, and as bytes."""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")


def well_formed(text: str) -> str:
    """`text` with every lone surrogate replaced by U+FFFD, as Python's own decoders do; halves of a pair are joined.

    Such text comes from JSON escapes cut in half and from file names that are not UTF-8; no tokenizer takes it.
    """
    if not _SURROGATE.search(text):
        return str(text)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def name_bytes(name: str) -> bytes:
    """A name as bytes: a file's own, UTF-8 or not. Half a surrogate pair that is no byte, as JSON may have, stays."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogatepass")
