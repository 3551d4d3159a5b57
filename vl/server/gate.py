"""Who may ask, and how many at once: looked at before anything of a request is read."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vl.server.errors import ApiError, response

OPEN = ("/health",)  # whoever watches over the server has no key
_DRAIN_SECONDS = 10.0
_SMOOTHING = 0.1  # of how long requests take


class Gate:
    """ASGI middleware: keys, and a place for each request to be answered.

    Args:
        app: what is behind it.
        keys: that may be brought; none: anybody may ask.
        places: requests that are worked on at once.
        paths: of the requests that need a place.
        heard: called with the path and the status of every answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Sequence[str],
        places: int,
        paths: Collection[str],
        heard: Callable[[str, int], None],
    ) -> None:
        self._app, self._places, self._paths, self._heard = app, places, paths, heard
        self._keys = [_digest(key.encode()) for key in keys]
        self._taken = 0
        self._seconds = 1.0  # that a request takes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._heard(scope["path"], message["status"])
            await send(message)

        try:
            self._check_key(scope)
            if scope["path"] not in self._paths:
                await self._app(scope, receive, watched)
                return
            self._check_place()
        except ApiError as error:
            await _drain(receive)
            await response(error)(scope, receive, watched)
            return
        self._taken += 1
        start = time.monotonic()
        try:
            await self._app(scope, receive, watched)
        finally:
            self._taken -= 1
            self._seconds += _SMOOTHING * (time.monotonic() - start - self._seconds)

    def _check_key(self, scope: Scope) -> None:
        if not self._keys or scope["path"] in OPEN:
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, key = given.partition(b" ")
        digest = _digest(key.strip())
        if kind.lower() != b"bearer" or not any(hmac.compare_digest(digest, known) for known in self._keys):
            raise ApiError(
                401,
                "no valid API key: send the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_place(self) -> None:
        if self._taken >= self._places:
            wait = max(1, min(60, math.ceil(self._seconds)))
            raise ApiError(
                429,
                f"{self._taken} requests are being answered or wait, which is all that this server takes: try again "
                f"in {wait} s",
                code="server_full",
                headers={"Retry-After": str(wait)},
            )


def _digest(key: bytes) -> bytes:
    """All of one length, so that comparing them tells nothing."""
    return hashlib.sha256(key).digest()


async def _drain(receive: Receive) -> None:
    """Read what comes of a request that is refused: a client that is cut off while it sends sees no answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
