"""SplitMix64, by which a request's seed becomes noise: the numbers of it, and its finaliser on the host."""

from __future__ import annotations

BITS = 2**64 - 1
STEP, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mixed(x: int) -> int:
    """The finaliser on one number, unsigned."""
    x = (x ^ x >> 30) * FIRST & BITS
    x = (x ^ x >> 27) * SECOND & BITS
    return x ^ x >> 31


def signed(x: int) -> int:
    """The int64 of the same bits."""
    return x - 2**64 if x >= 2**63 else x
