"""Connections of clients that are slow: none holds a place, a file or memory of the server for ever.

asyncio keeps what a client does not read, and tells when that is more than 64 KiB: from then on an answer's stream
waits. The engine does not, which writes the answer to its end and frees its place in the batch.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

SECONDS = 60.0  # for the headers of a request to come, and for a client to read what was written to it

_Base: Any = AutoHTTPProtocol  # of httptools where that is installed, or of h11


class Connection(_Base):
    """uvicorn's, which is cut off where the client takes longer than `SECONDS`."""

    _headers: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._headers = self.loop.call_later(SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers = _cancelled(self._headers)
        self._reading = _cancelled(self._reading)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._headers = _cancelled(self._headers)
        elif self._headers is None:  # the beginning of another request
            self._headers = self.loop.call_later(SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading = _cancelled(self._reading)
        if self.cycle is not None and self.cycle.response_complete:
            self._await_reader()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_reader()

    def _await_reader(self) -> None:
        if self._reading is None and self.transport.get_write_buffer_size():
            self._reading = self.loop.call_later(SECONDS, self._cut_off)

    def _cut_off(self) -> None:
        self._reading = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
