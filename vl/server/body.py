"""The JSON of a request, within limits of size and time."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from vl.server.errors import ApiError, told

T = TypeVar("T")
SECONDS = 60.0  # for a whole body to come
_DIGITS = 1000  # of a whole number; Python itself reads up to 4300
_DRAINED = 256 * 2**20  # bytes of a body that is refused


async def read_body(request: Request, most: int) -> bytes:
    """The body. Raises ApiError if it is no JSON by its type, is longer than `most` bytes, or does not come in time."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "send JSON, with the header Content-Type: application/json")
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise ApiError(415, f"a body in {coding!r:.40} is not read: send it as it is, without Content-Encoding")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= most:
                    parts.append(part)
                elif size > most + _DRAINED:
                    break
    except TimeoutError:
        raise ApiError(408, f"the request did not come within {SECONDS:g} s") from None
    if size > most:
        raise ApiError(
            413, f"the request is larger than the limit of {most / 2**20:g} MiB: send less text, or smaller images"
        )
    return b"".join(parts)


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object. Raises ApiError."""
    try:
        found = json.loads(body, parse_constant=_no_number, parse_int=_whole_number, object_pairs_hook=_object)
    except RecursionError:
        raise ApiError(400, "the request is not JSON that can be read: it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ApiError(400, "the request is not JSON: it is not in UTF-8") from None
    except ValueError as error:
        raise ApiError(400, f"the request is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ApiError(400, f"the request must be a JSON object, not {told(found)}")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a name that is there twice, of whose values one would be dropped."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"an object has {twice!r:.80} twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number there")


def _whole_number(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives, which is cancelled if the client leaves: then it raises ClientDisconnect.

    The request's body has been read.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
