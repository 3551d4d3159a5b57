"""Weights of experts that are not plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

Product = Callable[[Tensor], Tensor]  # rows x [n, in] -> [n, out], in x's dtype


class Stored(Protocol):
    """A matrix of every expert, stored in a way of its own, or two, one below the other.

    `format` names the way: a kernel that reads it is chosen by this name.
    """

    format: str

    def products(self) -> Sequence[Product]:
        """Per expert, the product of rows with its matrix; what is unpacked for one is gone before the next."""
