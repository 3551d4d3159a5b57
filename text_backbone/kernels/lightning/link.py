"""Sequences of a batch that begin before it or go on after it, in batches that are elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Exchange = Callable[[Tensor, Tensor, bool, Tensor | None], Tensor]


@dataclass(frozen=True, eq=False)
class Link:
    """Which sequences of a batch get a state from elsewhere, which give one, and how these come of each other.

    What a sequence gives is its gain alone, the sum over its tokens of k^T v, decayed to its end, as if it had begun
    here: so no batch has to wait for another before it gives. In the backward pass the sequences that got a state give,
    the sum of q^T do, decayed to their first token, and those that gave get one.

    Attributes:
        takes: sequences that begin from a state.
        gives: sequences that something elsewhere goes on from.
        exchange: (given, slopes, reverse, states) -> taken. Forward, given is float32 [gives, heads, d, d], and taken
            [takes, heads, d, d] the state before each sequence's first token. `reverse`, given is [takes, heads, d, d],
            and taken [gives, heads, d, d] the same sum over all tokens that come after each sequence, decayed to the
            first token after it. float64 if the batch is. It has no gradient of its own. `states` are a cache's, for it
            to begin with and to leave the new ones in, or None.
    """

    takes: tuple[int, ...]
    gives: tuple[int, ...]
    exchange: Exchange
