"""Memory of servers that run for weeks."""

from __future__ import annotations

import ctypes

ARENAS = 2
_M_ARENA_MAX = -8  # of glibc's malloc.h


def bound_arenas() -> bool:
    """Let all threads allocate from a few heaps. Call it before threads start.

    glibc gives every thread a heap of its own, up to eight per core, and each keeps the peak of the largest image or
    prompt that its thread has ever met: requests move between threads, so the peaks add up.

    Returns:
        whether it could be set: other C libraries (macOS, musl) have no such setting and need none.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_ARENA_MAX, ARENAS))
