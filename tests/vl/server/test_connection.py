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

SECONDS = 0.5
CHUNKS, CHUNK = 100, {"text": "a" * 20_000}


class Served(uvicorn.Server):
    """A server of long answers that waits for its clients for less than a second."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        app = FastAPI()
        app.add_api_route("/stream", self.stream)
        app.add_api_route("/whole", self.whole)
        super().__init__(uvicorn.Config(app, http=connection.Connection, log_level="error"))

    async def stream(self) -> Response:
        return EventStream(self.chunks())

    async def whole(self) -> Response:
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
        client.settimeout(10)
        client.connect(self.servers[0].sockets[0].getsockname())
        return client

    def await_end_of_all(self) -> None:
        last = time.monotonic() + 10
        while self.server_state.connections:
            assert time.monotonic() < last
            time.sleep(0.01)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(connection, "SECONDS", SECONDS)
    server, bound = Served(), bind("127.0.0.1", 0)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # what the system keeps beside asyncio
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server
    server.should_exit = True
    thread.join()
    bound.close()


@pytest.mark.parametrize("how", ["stream", "whole"])
def test_a_client_that_never_reads_is_cut_off(served: Served, how: str) -> None:
    never = served.connect()
    never.sendall(f"GET /{how} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert served.ended.wait(10)  # what is written for a stream is given up
    served.await_end_of_all()
    got = b"".join(iter(lambda: never.recv(2**16), b""))  # what was on its way
    head, _, body = got.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert len(body) < int(length[1]) if length else not body.endswith(b"0\r\n\r\n")
    never.close()


def test_a_client_that_reads_slowly_gets_all(served: Served) -> None:
    """It takes several times as long as one that reads nothing is given."""
    slow = served.connect()
    slow.sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
    start, got = time.monotonic(), b""
    while b"[DONE]" not in got[-100:]:
        got += (part := slow.recv(2**16))
        assert part
        time.sleep(4 * SECONDS / 1000)
    assert time.monotonic() - start > 2 * SECONDS
    assert got.count(b"data: ") == CHUNKS + 1
    slow.close()


def test_headers_have_to_come(served: Served) -> None:
    again = served.connect()
    again.sendall(b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b" 404 " in again.recv(2**16)
    again.sendall(b"GET /nothing HTTP/1.1\r\n")
    silent, half = served.connect(), served.connect()
    half.sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n")
    for client in (silent, half, again):
        with suppress(ConnectionResetError):
            while client.recv(2**16):  # until its end; TimeoutError if there is none
                pass
        client.close()
