"""Which port the page is served at."""

from __future__ import annotations

import errno
import socket

from vl.errors import Error

FIRST_PORT = 7860
PORTS_TRIED = 100


def free_port(host: str, port: int | None = None) -> int:
    """`port` if it can be listened on; without one, the first free one from 7860 on."""
    candidates = range(FIRST_PORT, FIRST_PORT + PORTS_TRIED) if port is None else (port,)
    for candidate in candidates:
        try:
            with socket.create_server((host, candidate), family=family_of(host)):
                return candidate
        except (OSError, ValueError, TypeError) as error:  # the latter two for what cannot be a host's name
            if getattr(error, "errno", None) != errno.EADDRINUSE:
                reason = getattr(error, "strerror", None) or error
                raise Error(f"cannot listen on {host}:{candidate} ({reason})") from error
    if port is None:
        raise Error(f"ports {FIRST_PORT} to {candidates[-1]} of {host} are all in use: give a free one with --port")
    raise Error(f"port {port} of {host} is in use: give another with --port, or none to take the next free one")


def family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
