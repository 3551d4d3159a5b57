"""The bytes behind an http(s) or data: URL, within a time and a size limit."""

from __future__ import annotations

import base64
import binascii
import urllib.error
import urllib.parse
import zlib
from http.client import HTTPException

from preprocessing.allowed import Allowed, ForbiddenError
from preprocessing.download import Limits, TooLargeError, open_url
from preprocessing.errors import ImageError

TIMEOUT_S = 20.0
"""Longest wait for a server to be found, to connect or to send anything, in seconds."""

DEADLINE_S = 120.0
"""Longest whole download, with look-ups and redirects, in seconds."""

MAX_BYTES = 256 * 2**20
"""Largest accepted download or data URL content, in bytes."""

_OVERHEAD = 2**20  # bytes of headers, chunk lengths and redirects
_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS


def is_url(source: str) -> bool:
    """Whether `source` has the form of a URL, rather than of a path."""
    return source[:8].lower().startswith(("http://", "https://", "data:", "file:"))


def fetch(url: str, label: str, allowed: Allowed | None = None) -> bytes:
    """The content of an http(s) or data: URL, held in memory. Raises ImageError, its message starting with `label`.

    Args:
        allowed: the only servers that may be asked, and for how much; None is any that can be reached.
    """
    return _data(url, label) if url[:5].lower() == "data:" else _download(url, label, allowed)


def _data(url: str, label: str) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma:
        raise ImageError(f"{label}: no comma in the data URL; expected data:image/png;base64,...")
    if len(payload) > 2 * MAX_BYTES:
        raise _too_large(label, MAX_BYTES)
    try:
        content = urllib.parse.unquote_to_bytes(payload)
    except UnicodeEncodeError:
        raise ImageError(
            f"{label}: the data URL has half a surrogate pair in it, which is no text; send base64"
        ) from None
    if not header.lower().endswith(";base64"):
        return content
    try:
        return base64.b64decode(b"".join(content.split()), validate=True)
    except binascii.Error as error:
        raise ImageError(f"{label}: invalid base64 in the data URL ({error})") from None


def _download(url: str, label: str, allowed: Allowed | None) -> bytes:
    deadline, most = (DEADLINE_S, MAX_BYTES) if allowed is None else (allowed.seconds, allowed.max_bytes)
    limits = Limits(min(TIMEOUT_S, deadline), deadline, most + _OVERHEAD)
    content = bytearray()
    try:
        with open_url(urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]"), limits, allowed) as response:
            while chunk := response.read1(2**18):
                content += chunk
            expected = response.headers.get("Content-Length", "")
            encoding = response.headers.get("Content-Encoding", "identity").lower()
    except urllib.error.HTTPError as error:
        with error:
            raise ImageError(f"{label}: the server answered {error.code} {error.reason}; check the URL") from None
    except TooLargeError:
        raise _too_large(label, most) from None
    except ForbiddenError as error:
        raise ImageError(f"{label}: {error}") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, TimeoutError) and limits.expired:
            fix = "download it and pass the file"
            raise ImageError(f"{label}: not downloaded within {deadline:g} s; {fix}") from None
        if isinstance(reason, TimeoutError):
            raise ImageError(f"{label}: no answer within {limits.timeout:g} s; try again or pass a file") from None
        raise ImageError(f"{label}: cannot be downloaded ({reason}); check the URL and the network") from None
    if expected.isdigit() and len(content) < int(expected):
        raise ImageError(f"{label}: the connection ended after {len(content)} of {expected} bytes; try again")
    return _decoded(bytes(content), encoding, label, most)


def _decoded(content: bytes, encoding: str, label: str, most: int) -> bytes:
    """The body without the compression that some servers apply unasked."""
    if encoding in ("gzip", "x-gzip", "deflate"):
        try:
            content = zlib.decompressobj(_ZLIB_OR_GZIP).decompress(content, most + 1)
        except zlib.error as error:
            raise ImageError(f"{label}: damaged download ({error}); try again") from None
    if len(content) > most:
        raise _too_large(label, most)
    return content


def _too_large(label: str, most: int) -> ImageError:
    return ImageError(f"{label}: larger than the limit of {most >> 20} MiB")
