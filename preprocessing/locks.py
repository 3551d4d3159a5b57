"""Objects that belong to the caller, used by one thread at a time."""

from __future__ import annotations

import threading

_LOCKS = [threading.Lock() for _ in range(64)]


def lock_of(thing: object) -> threading.Lock:
    """A lock that is the same for the same object; a few others may share it.

    The same Pillow image or open file may be in two places of a conversation, or in two requests.
    """
    return _LOCKS[(id(thing) >> 4) % len(_LOCKS)]
