"""What takes long to make is made once, and what cannot be made is tried once."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from vl.errors import InputError

SECONDS = 600.0  # after which what failed is tried again: the machine may have been busy

T = TypeVar("T")


class NotNow(InputError):
    """It was not tried."""


class Made(Generic[T]):
    """What was made for keys, the last `most` of them, and of as many others why it could not be.

    Whoever asks for what another thread is making waits for that.
    """

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._made: OrderedDict[bytes, T] = OrderedDict()
        self._failed: OrderedDict[bytes, tuple[float, str]] = OrderedDict()  # until when, and what was told
        self._coming: dict[bytes, Future[None]] = {}

    def get(self, key: bytes, make: Callable[[], T]) -> T:
        """What `make` gives, or has given for this key. Raises InputError as it does, or did."""
        while True:
            with self._lock:
                if (found := self._known(key)) is not None:
                    return found
                if (coming := self._coming.get(key)) is None:
                    self._coming[key] = mine = Future[None]()
                    break
            coming.result()
        try:
            made = make()
        except NotNow:
            raise
        except InputError as error:
            with self._lock:
                _put(self._failed, key, (time.monotonic() + SECONDS, str(error)), self._most)
            raise
        else:
            with self._lock:
                _put(self._made, key, made, self._most)
            return made
        finally:
            with self._lock:
                del self._coming[key]
            mine.set_result(None)

    def _known(self, key: bytes) -> T | None:
        if key in self._made:
            self._made.move_to_end(key)
            return self._made[key]
        until, told = self._failed.pop(key, (0.0, ""))
        if time.monotonic() < until:
            self._failed[key] = until, told  # the last to be dropped
            raise InputError(told)
        return None


V = TypeVar("V")


def _put(kept: OrderedDict[bytes, V], key: bytes, value: V, most: int) -> None:
    kept[key] = value
    if len(kept) > most:
        kept.popitem(last=False)
