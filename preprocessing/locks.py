"""Objects that belong to the caller, used by one thread at a time."""

from __future__ import annotations

import os
import threading

_LOCKS = [threading.RLock() for _ in range(64)]


def lock_of(thing: object) -> threading.RLock:
    """A lock that is the same for the same object; a few others may share it.

    The same Pillow image or open file may be in two places of a conversation, or in two requests.
    """
    return _LOCKS[(id(thing) >> 4) % len(_LOCKS)]


def _renew() -> None:
    _LOCKS[:] = [threading.RLock() for _ in _LOCKS]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)  # a lock that another thread held would stay locked in the child
