"""Server-sent events: an answer piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Send

from vl.server.errors import as_api_error, dumps

DONE = b"data: [DONE]\n\n"
_COMMENT = b": waiting\n\n"
_QUIET = 15.0  # seconds after which a proxy may take a connection for dead


class EventStream(StreamingResponse):
    """Sends each of `chunks` as JSON, then that it is done; or an error. A client that leaves ends `chunks`."""

    def __init__(self, chunks: AsyncGenerator[dict[str, Any], None], quiet: float = _QUIET) -> None:
        self._events = _events(chunks, quiet)
        super().__init__(
            self._events,
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        finally:
            await self._events.aclose()


async def _events(chunks: AsyncGenerator[dict[str, Any], None], quiet: float) -> AsyncGenerator[bytes, None]:
    coming: asyncio.Future[Any] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(chunks, None))
            if not (await asyncio.wait({coming}, timeout=quiet))[0]:
                yield _COMMENT
                continue
            found, coming = coming, None
            try:
                chunk = found.result()
            except Exception as error:
                yield b"data: " + dumps(as_api_error(error).body()) + b"\n\n"
                return
            if chunk is None:
                yield DONE
                return
            yield b"data: " + dumps(chunk) + b"\n\n"
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await chunks.aclose()
