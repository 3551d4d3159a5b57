"""Quantised matrices as a part of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from text_backbone.quantization import fp8, int8, nf4
from text_backbone.slot import Slot


class Format(Protocol):
    """What the module of a format has; `weight` is its NamedTuple of tensors."""

    @property
    def empty(self) -> Callable[..., Any]: ...
    @property
    def quantize(self) -> Callable[[Tensor], Any]: ...
    @property
    def dequantize(self) -> Callable[..., Tensor]: ...
    @property
    def linear(self) -> Callable[..., Tensor]: ...


FORMATS: dict[str, Format] = {"int8": int8, "fp8": fp8, "nf4": nf4}


class Quantized(nn.Module):
    """Matrices [*lead, rows, columns] in a format, their tensors as buffers of the names that the format gives them.

    Moves with the model, and keeps its dtypes when the model is cast.

    Args:
        format: one of `FORMATS`.
        lead, rows, columns: the shape of what is stored.
        dtype: in which values are read out.

    Raises:
        ValueError: if the format cannot hold matrices of this size.
    """

    def __init__(
        self,
        format: str,
        lead: tuple[int, ...],
        rows: int,
        columns: int,
        *,
        device: torch.device | str | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.format, self.lead, self.rows, self.columns, self.dtype = format, lead, rows, columns, dtype
        self._form = FORMATS[format]
        room = self._form.empty(lead, rows, columns, device)
        self._tuple = type(room)
        for name, part in room._asdict().items():
            self.register_buffer(name, part)

    @classmethod
    def of(cls, tensor: Tensor, format: str) -> Quantized:
        """A tensor [..., rows, columns], quantised on its device; of one on `meta`, the room for it."""
        *lead, rows, columns = tensor.shape
        stored = cls(format, tuple(lead), rows, columns, device=tensor.device, dtype=tensor.dtype)
        if not tensor.is_meta:
            for index in product(*map(range, lead)):
                stored.load(index, tensor.detach()[index])
        return stored

    def at(self, index: tuple[int, ...] = ()) -> Any:
        """The format's tuple, of the matrix or matrices at a place in the leading dimensions: views."""
        return self._tuple(*(getattr(self, name)[index] for name in self._tuple._fields))

    def load(self, index: tuple[int, ...], matrix: Tensor) -> None:
        """Quantise a matrix [rows, columns] on this device. ValueError if a value is not finite."""
        for part, value in zip(self.at(index), self._form.quantize(matrix.to(self.device)), strict=True):
            part.copy_(value)

    def read(self, index: tuple[int, ...] = ()) -> Tensor:
        """The matrix or matrices at a place, in `dtype`."""
        return self._form.dequantize(self.at(index), self.columns, self.dtype)

    def slot(self, index: tuple[int, ...] = ()) -> Slot:
        """The place of one matrix under its released name."""
        return Slot((self.rows, self.columns), partial(self.load, index), partial(self.read, index))

    def linear(self, index: tuple[int, ...], x: Tensor) -> Tensor:
        """Rows x [n, columns] times the matrix at a place, or those there one below the other: [n, rows], x's dtype."""
        return self._form.linear(self.at(index), self.columns, x)

    def products(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """`linear` of every place in the first dimension."""
        return [partial(self.linear, (i,)) for i in range(self.lead[0])]

    @property
    def device(self) -> torch.device:
        return next(self.buffers()).device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Quantized:
        for name, part in self._buffers.items():
            assert part is not None
            moved = fn(part)
            self._buffers[name] = moved if moved.dtype == part.dtype else part.to(moved.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.device)).dtype
        return self

    def extra_repr(self) -> str:
        return f"{self.format}, {[*self.lead, self.rows, self.columns]}"
