"""Quantised matrices as a part of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from text_backbone.part import Part
from text_backbone.quantization import fp8, int8, nf4
from text_backbone.slot import Slot


class Format(Protocol):
    """What the module of a format has; `weight` is its NamedTuple of tensors."""

    @property
    def empty(self) -> Callable[..., Any]: ...
    @property
    def quantize(self) -> Callable[[Tensor], Any]: ...
    @property
    def cut(self) -> Callable[[str, Tensor, Part], Tensor]: ...
    @property
    def dequantize(self) -> Callable[..., Tensor]: ...
    @property
    def largest(self) -> Callable[..., Tensor]: ...
    @property
    def linear(self) -> Callable[..., Tensor]: ...


FORMATS: dict[str, Format] = {"int8": int8, "fp8": fp8, "nf4": nf4}


class Quantized(nn.Module):
    """Matrices [*lead, rows, columns] in a format, their tensors as buffers of the names that the format gives them.

    Moves with the model, and keeps its dtypes when the model is cast. Of matrices that several processes share, each
    holds a part, which is exactly that part of the whole matrix when it is quantised.

    Args:
        format: one of `FORMATS`.
        lead, rows, columns: the shape of what is stored.
        dtype: in which values are read out.
        part: where `rows` and `columns` lie in the whole matrix; None if they are all of it.

    Attributes:
        first, stride: for NF4, whose scales are numbered through the whole matrix: the number of the first block of 64
            columns that is stored, and blocks in a row of the whole. Block j of row r is `first + r * stride + j`.
        works_on: the device that `load` quantises on; None: where the codes are.

    Raises:
        ValueError: if the format cannot hold matrices of this size, or such a part of one.
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
        part: Part | None = None,
    ) -> None:
        super().__init__()
        self.format, self.lead, self.rows, self.columns, self.dtype = format, lead, rows, columns, dtype
        self.works_on: torch.device | None = None
        self.part = part or Part.all_of((rows, columns))
        if self.part.shape != (rows, columns):
            raise ValueError(f"a part of {self.part.shape} is not of the {rows} x {columns} that are stored")
        self.stride = self.part.whole[1] // nf4.BLOCK
        self.first = self.part.ranges[0][0] * self.stride + self.part.ranges[1][0] // nf4.BLOCK
        self._numbers = () if format != "nf4" or self.part.is_all else (self.first, self.stride)
        whole = self._form.empty((), *self.part.whole, "meta")
        self._tuple = type(whole)
        for name, tensor in whole._asdict().items():
            kept = self._form.cut(name, tensor, self.part)
            shape = kept.flatten().shape if tensor.dim() == 1 else kept.shape  # as many dimensions as the whole's
            self.register_buffer(name, torch.empty((*lead, *shape), dtype=tensor.dtype, device=device))

    @property
    def _form(self) -> Format:
        return FORMATS[self.format]  # not kept: a module of Python could not be copied with the model

    @classmethod
    def of(cls, tensor: Tensor, format: str, part: Part | None = None) -> Quantized:
        """A tensor [..., rows, columns], quantised on its device; of one on `meta`, the room for it.

        With a `part` the tensor is on `meta`: a part's codes come from the whole matrix.
        """
        assert part is None or tensor.is_meta
        *lead, rows, columns = tensor.shape
        stored = cls(format, tuple(lead), rows, columns, device=tensor.device, dtype=tensor.dtype, part=part)
        if not tensor.is_meta:
            for index in product(*map(range, lead)):
                stored.load(index, tensor.detach()[index])
        return stored

    def at(self, index: tuple[int, ...] = ()) -> Any:
        """The format's tuple, of the matrix or matrices at a place in the leading dimensions: views."""
        return self._tuple(*(getattr(self, name)[index] for name in self._tuple._fields))

    def load(self, index: tuple[int, ...], matrix: Tensor) -> None:
        """Quantise a whole matrix, and keep what is stored here. ValueError if a value is not finite in `dtype`."""
        whole = self._form.quantize(matrix.to(self.works_on or self.device))
        self._check(self._form.largest(whole, self.part.whole[1]))
        for name, value in whole._asdict().items():
            stored = getattr(self, name)[index]
            stored.copy_(self.cut(name, value).reshape(stored.shape))

    def check(self) -> None:
        """Raises ValueError if a value that is stored may not be finite in `dtype`; waits for the device."""
        for index in product(*map(range, self.lead)):
            if (weight := self.at(index))[0].numel():
                self._check(self._form.largest(weight, self.columns, *self._numbers))

    def _check(self, largest: Tensor) -> None:
        if not largest.to(self.dtype).isfinite():
            raise ValueError("NaN or infinite values")

    def cut(self, name: str, whole: Tensor) -> Tensor:
        """A view of what is stored here of the field `name` of a whole quantised matrix."""
        return self._form.cut(name, whole, self.part)

    def read(self, index: tuple[int, ...] = ()) -> Tensor:
        """The matrix or matrices at a place, in `dtype`."""
        return self._form.dequantize(self.at(index), self.columns, self.dtype, *self._numbers)

    def slot(self, index: tuple[int, ...] = ()) -> Slot:
        """The place of one matrix under its released name."""
        part = None if self.part.is_all else self.part.of
        return Slot(self.part.whole, partial(self.load, index), partial(self.read, index), part=part)

    def linear(self, index: tuple[int, ...], x: Tensor) -> Tensor:
        """Rows x [n, columns] times the matrix at a place, or those there one below the other: [n, rows], x's dtype."""
        return self._form.linear(self.at(index), self.columns, x, *self._numbers)

    def linears(self, x: Tensor, others: Sequence[Quantized]) -> list[Tensor] | None:
        """`linear` of this and of other single matrices in one launch of a kernel; None if there is none for them."""
        weights = [self, *others]
        if any(weight.format != "nf4" or weight.lead for weight in weights):
            return None
        return nf4.linears([(weight.at(), weight.first, weight.stride) for weight in weights], x)

    def linear_to(self, y: Tensor, x: Tensor) -> bool:
        """Have a kernel write `linear` of a single matrix to y, whose rows may be apart; False if there is none."""
        return self.format == "nf4" and not self.lead and nf4.linear_to(y, self.at(), x, self.first, self.stride)

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
