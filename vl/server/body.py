"""The JSON of a request, within limits of size and time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from vl.server.errors import ApiError

T = TypeVar("T")
SECONDS = 60.0  # for a whole body to come
_DRAINED = 256 * 2**20  # bytes of a body that is refused


async def read_body(request: Request, most: int) -> bytes:
    """The body. Raises ApiError if it is no JSON by its type, is longer than `most` bytes, or does not come in time."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "send JSON, with the header Content-Type: application/json")
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
        raise ApiError(413, f"the request is larger than the limit of {most / 2**20:g} MiB: send smaller images")
    return b"".join(parts)


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object. Raises ApiError."""
    try:
        found = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the request is not JSON: {error or 'nested too deeply'}") from None
    if not isinstance(found, dict):
        raise ApiError(400, f"the request must be a JSON object, not {type(found).__name__}")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number there")


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
