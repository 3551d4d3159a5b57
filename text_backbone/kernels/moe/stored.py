"""Weights of experts that are not plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

Product = Callable[[Tensor], Tensor]  # rows x [n, in] -> [n, out], in x's dtype


class Stored(Protocol):
    """A matrix of every expert, stored in a way of its own, or two, one below the other.

    `format` names the way: the kernels that read its tensors are chosen by this name. `first` and `stride` say where a
    part of a matrix lies in the whole, for formats with blocks that run through it.
    """

    format: str
    first: int
    stride: int

    def at(self, index: tuple[int, ...] = ()) -> Any:
        """The tensors that hold it, in the order of the format: those of every matrix, or of the one at `index`."""

    def products(self) -> Sequence[Product]:
        """Per expert, the product of rows with its matrix; what is unpacked for one is gone before the next."""
