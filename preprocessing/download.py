"""Downloads that end: one deadline and one size for everything a server sends.

Python's own timeouts start again with every byte, so a server that sends a header, a redirect or the length of a chunk
one byte at a time holds its client for ever. Here every wait, from the look-up of the name to the last byte of the last
redirect, is what is left of one deadline.
"""

from __future__ import annotations

import io
import socket
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from functools import lru_cache, partial
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from ssl import SSLContext, create_default_context
from typing import Any

from preprocessing.allowed import Allowed


class TooLargeError(Exception):
    """The server sends more than is accepted."""


@dataclass
class Limits:
    """What one download may take.

    `timeout`: longest wait for a single event, in seconds. `deadline`: longest time for all, in seconds from now.
    `size`: most bytes that the server may send, with headers and redirects.
    """

    timeout: float
    deadline: float
    size: int
    started: float = field(default_factory=time.monotonic)

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self.started + self.deadline

    def wait(self) -> float:
        """Seconds that the next event may take. Raises TimeoutError if there are none left."""
        left = self.started + self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(self.timeout, left)

    def count(self, size: int) -> None:
        """Take `size` received bytes off what may come. Raises TooLargeError."""
        self.size -= size
        if self.size < 0:
            raise TooLargeError


def open_url(url: str, limits: Limits, allowed: Allowed | None = None) -> HTTPResponse:
    """The response to a GET of an http(s) URL, after redirects and through the proxies that the environment names.

    Reading it keeps to the limits too. If only some hosts are `allowed`, that holds for redirects as well, and no proxy
    is used, which would look names up again. Raises TimeoutError, TooLargeError, ForbiddenError, and what
    `urllib.request.urlopen` raises.
    """
    opener = urllib.request.OpenerDirector()  # no handlers for file: or ftp:, which a server could redirect to
    for handler in (
        urllib.request.ProxyHandler() if allowed is None else urllib.request.ProxyHandler({}),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Handler(limits, allowed),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers={"User-Agent": "minimax-vl"})
    response = opener.open(request, timeout=limits.wait())
    assert isinstance(response, HTTPResponse)
    return response


class _Handler(urllib.request.AbstractHTTPHandler):
    """Opens http and https with the limits."""

    def __init__(self, limits: Limits, allowed: Allowed | None) -> None:
        super().__init__()
        self._connect = partial(_connect, limits, allowed)
        self._respond = partial(_Response, limits)

    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(self._limited(HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(self._limited(HTTPSConnection), request, context=_context())

    def _limited(self, kind: type[HTTPConnection]) -> Any:
        """A maker of connections of a kind that keep to the limits."""

        def make(host: str, **options: Any) -> HTTPConnection:
            connection: Any = kind(host, **options)
            connection._create_connection = self._connect
            connection.response_class = self._respond
            return connection

        return make

    http_request = urllib.request.AbstractHTTPHandler.do_request_
    https_request = urllib.request.AbstractHTTPHandler.do_request_


@lru_cache(maxsize=1)
def _context() -> SSLContext:
    """Made once: reading the system's certificates takes longer than many a download."""
    return create_default_context()


def _connect(limits: Limits, allowed: Allowed | None, address: tuple[str, int], *_: Any) -> socket.socket:
    """As `socket.create_connection`; what is sent or negotiated before the answer has what is then left of the time."""
    failure: OSError | None = None
    if allowed is not None:
        allowed.check_host(*address)
    found = _look_up(limits, *address)
    if allowed is not None:
        allowed.check_addresses(address[0], [host for host, _ in found])
    for host, port in found:  # addresses, which are not looked up again
        try:
            connected = socket.create_connection((host, port), timeout=limits.wait())
            connected.settimeout(limits.wait())
            return connected
        except OSError as error:
            failure = error
    raise failure or OSError(f"no address for {address[0]}")


def _look_up(limits: Limits, host: str, port: int) -> list[tuple[str, int]]:
    """Addresses of a host. The system's resolver knows no deadline, so a thread waits for it."""
    answers: list[tuple[str, int]] = []
    failures: list[OSError] = []

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.extend((str(where[0]), port) for *_, where in found)
        except (OSError, UnicodeError) as error:
            failures.append(OSError(error))

    thread = threading.Thread(target=ask, name="vl-look-up", daemon=True)
    thread.start()
    thread.join(limits.wait())
    if thread.is_alive():
        raise TimeoutError
    if failures:
        raise failures[0]
    return list(dict.fromkeys(answers))


class _Response(HTTPResponse):
    """Reads its status, headers and body through `_Stream`."""

    def __init__(self, limits: Limits, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_Stream(sock, limits))


class _Stream(io.RawIOBase):
    """The bytes from a socket; each wait for some is what the limits leave."""

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self._sock, self._limits = sock, limits
        self._raw = sock.makefile("rb", buffering=0)  # keeps the socket open after the connection lets go of it

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._limits.wait())
        size = self._raw.readinto(buffer)
        self._limits.count(size or 0)
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()
