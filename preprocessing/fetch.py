"""The bytes behind an http(s) or data: URL, within a time and a size limit."""

from __future__ import annotations

import base64
import binascii
import time
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException

from preprocessing.errors import ImageError

TIMEOUT_S = 20.0
"""Longest wait for the server to connect or to send anything, in seconds."""

DEADLINE_S = 120.0
"""Longest whole download, in seconds."""

MAX_BYTES = 256 * 2**20
"""Largest accepted download or data URL content, in bytes."""


def is_url(source: str) -> bool:
    """Whether `source` has the form of a URL, rather than of a path."""
    return source[:8].lower().startswith(("http://", "https://", "data:", "file:"))


def fetch(url: str, label: str) -> bytes:
    """The content of an http(s) or data: URL, held in memory. Raises ImageError, its message starting with `label`."""
    return _data(url, label) if url[:5].lower() == "data:" else _download(url, label)


def _data(url: str, label: str) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma:
        raise ImageError(f"{label}: no comma in the data URL; expected data:image/png;base64,...")
    if len(payload) > 2 * MAX_BYTES:
        raise ImageError(f"{label}: larger than the limit of {MAX_BYTES >> 20} MiB")
    content = urllib.parse.unquote_to_bytes(payload)
    if not header.lower().endswith(";base64"):
        return content
    try:
        return base64.b64decode(b"".join(content.split()), validate=True)
    except binascii.Error as error:
        raise ImageError(f"{label}: invalid base64 in the data URL ({error})") from None


def _download(url: str, label: str) -> bytes:
    deadline = time.monotonic() + DEADLINE_S
    content = bytearray()
    try:
        quoted = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
        request = urllib.request.Request(quoted, headers={"User-Agent": "minimax-vl"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            # read1 returns what has arrived, so a server that drips bytes cannot hold us past the deadline.
            while chunk := response.read1(2**18):
                content += chunk
                if len(content) > MAX_BYTES:
                    raise ImageError(f"{label}: larger than the limit of {MAX_BYTES >> 20} MiB")
                if time.monotonic() > deadline:
                    raise ImageError(f"{label}: not downloaded within {DEADLINE_S:g} s; download it and pass the file")
            expected = response.headers.get("Content-Length", "")
            if expected.isdigit() and len(content) < int(expected):
                raise ImageError(f"{label}: the connection ended after {len(content)} of {expected} bytes; try again")
    except urllib.error.HTTPError as error:
        with error:
            raise ImageError(f"{label}: the server answered {error.code} {error.reason}; check the URL") from None
    except TimeoutError:
        raise ImageError(f"{label}: no answer within {TIMEOUT_S:g} s; try again or pass a file") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ImageError(f"{label}: cannot be downloaded ({reason}); check the URL and the network") from None
    return bytes(content)
