"""Ctrl-C where it does no harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class Interrupts:
    """A block in which Ctrl-C takes effect while it waits (`wait`), or at its end: all else in it is done whole.

    In threads other than the main one nothing is interrupted anyway.
    """

    def __init__(self) -> None:
        self._handler: Any = None  # what acts on Ctrl-C outside of the block
        self._came: list[tuple[int, FrameType | None]] = []
        self._waits = False

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):
                self._handler = handler
                signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._act()

    def wait(self, call: Callable[..., T], *args: object) -> T:
        """`call(*args)`, which Ctrl-C may end; it must leave nothing half done then."""
        self._waits = True
        try:
            self._act()
            return call(*args)
        finally:
            self._waits = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._came.append((number, frame))
        if self._waits:
            self._act()

    def _act(self) -> None:
        if self._came:
            came = self._came[0]
            self._came.clear()
            self._handler(*came)
