"""Memory of servers that run for weeks."""

from __future__ import annotations

import ctypes
from typing import Any

ARENAS = 2
_M_ARENA_MAX = -8  # of glibc's malloc.h


def bound_arenas() -> bool:
    """Let all threads allocate from a few heaps. Call it before threads start.

    glibc gives every thread a heap of its own, up to eight per core, and each keeps the peak of the largest image or
    prompt that its thread has ever met: requests move between threads, so the peaks add up.

    Returns:
        whether it could be set: other C libraries (macOS, musl) have no such setting and need none.
    """
    mallopt = _of_libc("mallopt")
    return mallopt is not None and bool(mallopt(_M_ARENA_MAX, ARENAS))


def trim() -> bool:
    """Give memory that is free back to the system: a heap's end alone goes back by itself, and holes in it stay.

    Other threads wait for it that allocate meanwhile, for some milliseconds.

    Returns:
        whether any was; False also where the C library has no such function.
    """
    malloc_trim = _of_libc("malloc_trim")
    return malloc_trim is not None and bool(malloc_trim(ctypes.c_size_t(0)))


def _of_libc(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
