"""The part of a tensor that one process keeps, where several share a model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Part:
    """A contiguous range of every dimension of a whole tensor.

    Attributes:
        whole: shape of the whole tensor.
        ranges: first index and one past the last, for each dimension.
    """

    whole: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def all_of(cls, whole: tuple[int, ...]) -> Part:
        """A part that is everything."""
        return cls(whole, tuple((0, size) for size in whole))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in self.ranges)

    @property
    def is_all(self) -> bool:
        return self.shape == self.whole

    def of(self, tensor: Tensor) -> Tensor:
        """A view of this part of a tensor of shape `whole`, or of its first dimensions if it has fewer."""
        return tensor[tuple(slice(*each) for each in self.ranges[: tensor.dim()])]

    def coarser(self, columns: int) -> Part:
        """The same part of a tensor whose last dimension has one element for so many of this one's.

        Raises:
            ValueError: if a range does not begin and end at such an element.
        """
        start, stop = self.ranges[-1]
        if start % columns or stop % columns or self.whole[-1] % columns:
            raise ValueError(
                f"columns {start} to {stop} of {self.whole[-1]} are not whole groups of {columns}: a matrix is split "
                f"at multiples of {columns} only"
            )
        whole = (*self.whole[:-1], self.whole[-1] // columns)
        return Part(whole, (*self.ranges[:-1], (start // columns, stop // columns)))
