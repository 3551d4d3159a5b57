"""Pages of other origins, whose scripts may ask: what their browsers are told (CORS)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

ANY = "*"
_PORTS = {"http": "80", "https": "443"}  # which browsers leave out
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:(?P<port>[1-9][0-9]{0,4}))?"
)


def allowing(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application, with what browsers have to hear before a page of these origins may ask and read its answers.

    It goes before keys: browsers ask without one whether they may send it. Cookies play no part.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=("Retry-After",),
        allow_private_network=True,
    )


def is_origin(text: str) -> bool:
    """Whether a browser could call a page's origin so, letter for letter; or `*`, which is any."""
    found = _ORIGIN.fullmatch(text)
    return text == ANY or (found is not None and found["port"] != _PORTS.get(found["scheme"], ""))
