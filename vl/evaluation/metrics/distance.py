"""Edit distance and longest common subsequence, by rapidfuzz."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from vl.errors import ConfigError


def check_installed() -> None:
    """Raises ConfigError without rapidfuzz: said before a model is asked, as the metrics are of no use then."""
    _rapidfuzz()


def _rapidfuzz() -> Any:
    """The library, imported when it is used: not all that imports this package measures distances."""
    try:
        from rapidfuzz import distance
    except ModuleNotFoundError:
        raise ConfigError("evaluation needs rapidfuzz: pip install 'minimax-vl[eval]'") from None
    return distance


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Levenshtein distance: the fewest insertions, deletions and substitutions that turn `a` into `b`."""
    return _rapidfuzz().Levenshtein.distance(a, b)


def common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest sequence that `a` and `b` hold in this order, with or without gaps."""
    return _rapidfuzz().LCSseq.similarity(a, b)


def spelled_differently(a: str, b: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Both texts cut into pieces, each with whether a fewest-edits alignment leaves it without a counterpart."""
    steps = _rapidfuzz().Levenshtein.opcodes(a, b)
    return (
        [(a[s.src_start : s.src_end], s.tag != "equal") for s in steps if s.src_end > s.src_start],
        [(b[s.dest_start : s.dest_end], s.tag != "equal") for s in steps if s.dest_end > s.dest_start],
    )
