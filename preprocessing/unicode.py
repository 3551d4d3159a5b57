"""Text as the tokenizer takes it: whole characters only."""

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
