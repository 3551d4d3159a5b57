"""Clients that are slow, over real sockets: those that never read and those that never say what they want."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Response

from vl.server import connection
from vl.server.errors import Json
from vl.server.running import bind
from vl.server.sse import EventStream

PATIENCE = 120.0  # seconds until what should come is given up
CHUNKS, CHUNK = 100, {"text": "a" * 20_000}
ON_ITS_WAY = 2**17  # bytes, and more than the system and asyncio keep of what was written


class Served(uvicorn.Server):
    """A server of long answers. For it, time passes as `skip` says, and else as it does.

    Attributes:
        asked: a request has come.
        ended: its answer was written, or given up.
    """

    def __init__(self) -> None:
        self.asked, self.ended = threading.Event(), threading.Event()
        self.skipped = 0.0
        app = FastAPI()
        app.add_api_route("/stream", self.stream)
        app.add_api_route("/whole", self.whole)
        super().__init__(uvicorn.Config(app, loop="asyncio", http=connection.Connection, log_level="error"))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop: Any = asyncio.get_running_loop()
        self.loop.time = lambda: time.monotonic() + self.skipped
        await super().startup(sockets)

    def skip(self, seconds: float) -> None:
        """Time passes at once."""
        self.skipped += seconds
        self.loop.call_soon_threadsafe(lambda: None)  # it looks at the clock again

    async def stream(self) -> Response:
        self.asked.set()
        return EventStream(self.chunks())

    async def whole(self) -> Response:
        self.asked.set()
        self.ended.set()
        return Json([CHUNK] * CHUNKS)

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        try:
            for _ in range(CHUNKS):
                yield CHUNK
                await asyncio.sleep(0)
        finally:
            self.ended.set()

    def connect(self) -> socket.socket:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE)
        client.connect(self.servers[0].sockets[0].getsockname())
        return client

    def await_end_of_all(self) -> None:
        """Until there are no connections: minutes pass meanwhile."""
        for _ in range(1000):
            if not self.server_state.connections:
                return
            self.skip(connection.SECONDS / 10)
            time.sleep(0.02)
        raise AssertionError(f"{len(self.server_state.connections)} connections are still there")


@pytest.fixture
def served() -> Iterator[Served]:
    server, bound = Served(), bind("127.0.0.1", 0)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # what the system keeps beside asyncio
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server
    server.should_exit = server.force_exit = True
    thread.join()
    bound.close()


@pytest.mark.parametrize("how", ["stream", "whole"])
def test_a_client_that_never_reads_is_cut_off(served: Served, how: str) -> None:
    never = served.connect()
    never.sendall(f"GET /{how} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert served.asked.wait(PATIENCE)
    served.await_end_of_all()
    assert served.ended.wait(PATIENCE)  # what is written for a stream is given up
    got = b"".join(iter(lambda: never.recv(2**16), b""))  # what was on its way
    head, _, body = got.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert len(body) < int(length[1]) if length else not body.endswith(b"0\r\n\r\n")
    never.close()


def test_a_client_that_reads_slowly_gets_all(served: Served) -> None:
    """It takes several times as long as one that reads nothing is given, and less for what is on its way."""
    slow = served.connect()
    slow.sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
    assert served.asked.wait(PATIENCE)
    got, before = b"", 0
    while b"[DONE]" not in got[-100:]:
        got += (part := slow.recv(2**16))
        assert part
        if len(got) - before > ON_ITS_WAY:
            before = len(got)
            served.skip(0.4 * connection.SECONDS)
    assert served.skipped > 2 * connection.SECONDS
    assert got.count(b"data: ") == CHUNKS + 1
    slow.close()


def test_headers_have_to_come(served: Served) -> None:
    again = served.connect()
    again.sendall(b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b" 404 " in again.recv(2**16)
    again.sendall(b"GET /nothing HTTP/1.1\r\n")
    silent, half = served.connect(), served.connect()
    half.sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n")
    while len(served.server_state.connections) < 3:
        time.sleep(0.01)
    served.await_end_of_all()
    for client in (silent, half, again):
        with suppress(ConnectionResetError):
            while client.recv(2**16):  # until its end; TimeoutError if there is none
                pass
        client.close()
