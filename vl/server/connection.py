"""Connections of clients that are slow: none holds a place, a file or memory of the server for ever.

asyncio keeps what a client does not read, and tells when that is more than 64 KiB: from then on an answer's stream
waits. The engine does not, which writes the answer to its end and frees its place in the batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

SECONDS = 60.0  # for the headers of a request to come, and for a client to read what was written to it

_Base: Any = AutoHTTPProtocol  # of httptools where that is installed, or of h11


class _Alarm:
    """Calls something after `SECONDS`, unless it is stopped before."""

    _handle: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
        """Harmless when it runs."""
        if self._handle is None:
            self._handle = loop.call_later(SECONDS, call)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class Connection(_Base):
    """uvicorn's, which is cut off where the client takes longer than `SECONDS`."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._headers, self._reading = _Alarm(), _Alarm()
        super().connection_made(transport)
        self._headers.start(self.loop, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._headers.stop()
        self._reading.stop()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._headers.stop()
        else:  # the beginning of a request
            self._headers.start(self.loop, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading.stop()
        if self.cycle is not None and self.cycle.response_complete:
            self._await_reader()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_reader()

    def _await_reader(self) -> None:
        if self.transport.get_write_buffer_size():
            self._reading.start(self.loop, self._cut_off)

    def _cut_off(self) -> None:
        self._reading.stop()
        if self.transport.get_write_buffer_size():
            self.transport.abort()
