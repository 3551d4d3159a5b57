"""Serving: a socket, signals, and an end that finishes what runs."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable

import uvicorn

from vl.errors import DeviceError, Error
from vl.heaps import trim
from vl.server.app import Server
from vl.server.connection import Connection

_LOOK = 1.0  # seconds between looks at whether the model has ended
_TRIM = 30.0  # seconds after which free memory is given back


def bind(host: str, port: int) -> socket.socket:
    """A socket that nobody can connect to yet. Raises Error if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError, UnicodeError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise Error(f"cannot listen on {host}, port {port} ({reason}): give another --host or --port") from None
    return bound


def serve(
    server: Server, bound: socket.socket, *, grace: float, log_requests: bool, ready: Callable[[], object]
) -> None:
    """Answer until SIGTERM or Ctrl-C; then no more is taken, and what runs is finished.

    Args:
        bound: from `bind`.
        grace: seconds after which what still runs is cancelled.
        log_requests: a line for each.
        ready: called when requests are taken.

    Raises:
        DeviceError: if the model ended, as processes of several GPUs may.
    """
    running = _Running(server, grace, log_requests, ready)
    # uvicorn sends itself the signals that it got once it is done: SIGTERM would then end the process before its exit.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        running.run([bound])
    finally:
        signal.signal(signal.SIGTERM, before)
        bound.close()
    if server.ended is not None:
        raise DeviceError(server.ended)


class _Running(uvicorn.Server):
    def __init__(self, server: Server, grace: float, log_requests: bool, ready: Callable[[], object]) -> None:
        config = uvicorn.Config(
            server.app,
            http=Connection,
            log_level="warning" if not log_requests else "info",
            access_log=log_requests,
            timeout_graceful_shutdown=max(1, round(grace)),
            server_header=False,
        )
        super().__init__(config)
        self._server, self._ready = server, ready
        self._tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tasks = [asyncio.create_task(self._end_with_model()), asyncio.create_task(self._stay_small())]
            self._ready()

    async def _stay_small(self) -> None:
        while True:
            await asyncio.sleep(_TRIM)
            await asyncio.to_thread(trim)

    async def _end_with_model(self) -> None:
        while self._server.ended is None:
            await asyncio.sleep(_LOOK)
        self.should_exit = True
