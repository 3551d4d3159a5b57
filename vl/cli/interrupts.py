"""Ctrl-C while a command ends after an earlier Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vl.cli.console import EXIT_INTERRUPTED


@contextmanager
def second_interrupt_ends() -> Iterator[None]:
    """A block that a first Ctrl-C ends as ever, by KeyboardInterrupt; then a second one ends the process at once.

    In the middle of what ends workers and libraries it would leave tracebacks of theirs, and nothing is lost by it:
    files are whole or not there.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(EXIT_INTERRUPTED))
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is first:
            signal.signal(signal.SIGINT, before)
