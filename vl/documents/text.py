"""Text files."""

from __future__ import annotations

import codecs
from pathlib import Path

from preprocessing.errors import InputError

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or what its byte order mark says; lines end with a line feed.

    Raises:
        InputError: if it is no text, or text in another encoding, naming the first line that cannot be read.
    """
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    encoding = next((name for mark, name in _MARKS.items() if contents.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in contents:
        raise InputError(f"{path} is no text, PDF or image: convert it to one of them")
    try:
        text = contents.decode(encoding)
    except UnicodeDecodeError as error:
        fix = "if it is text in another encoding, convert it: iconv -f LATIN1 -t UTF-8, for one"
        if encoding not in ("utf-8", "utf-8-sig"):  # which it says of itself
            fix = "it is damaged: write it anew"
        line = contents.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: not {encoding.upper().removesuffix('-SIG')} (byte {contents[error.start]:#04x}, "
            f"{error.reason}); {fix}"
        ) from None
    if not text.strip():
        raise InputError(f"{path} holds nothing but white space: there is nothing to read in it")
    return text.replace("\r\n", "\n").replace("\r", "\n")
