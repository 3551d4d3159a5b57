"""Where a model keeps one tensor of a released checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from text_backbone.part import Part


@dataclass(frozen=True)
class Slot:
    """A place for one tensor of a checkpoint, however the model stores it.

    Attributes:
        shape: the tensor's in the checkpoint, which need not be that of what is stored.
        load: keeps the values of a tensor of that shape, of any float dtype and on any device: cast, packed, or the
            part of them that belongs here. Raises ValueError if a value is not finite as it is kept.
        read: the values as a tensor of that shape, in the dtype and on the device of the model; for a plain parameter
            a view of it. With `part`, the values that are here.
        exact: whether its dtype is part of how the values are stored; files are then written in no other.
        room: where on the host the tensor is kept just as it is, contiguous: a reader whose tensor has this shape and
            dtype may fill it and give it to `load`, which then copies nothing. None where there is no such place.
        part: of a tensor of that shape, a view of what is here, where several processes share it; None for all of it.
    """

    shape: tuple[int, ...]
    load: Callable[[Tensor], None]
    read: Callable[[], Tensor]
    exact: bool = False
    part: Callable[[Tensor], Tensor] | None = None
    room: Tensor | None = None

    @classmethod
    def of(cls, view: Tensor, part: Part | None = None) -> Slot:
        """The slot of a plain parameter or of a slice of one; of a `part` that is stored there, the whole tensor's."""
        view = view.detach()

        def load(tensor: Tensor) -> None:
            keep(view, tensor if part is None else part.of(tensor))
            # Extremes carry NaN along, and need no temporary the size of the tensor.
            if view.numel() and not view.is_meta and not torch.stack(torch.aminmax(view)).isfinite().all():
                raise ValueError("NaN or infinite values")

        if part is None or part.is_all:
            return cls(tuple(view.shape), load, lambda: view, room=room_of(view))
        return cls(part.whole, load, lambda: view, part=part.of)


def keep(view: Tensor, tensor: Tensor) -> None:
    """Copy a tensor to where it is kept, unless it was read straight to there."""
    if tensor.data_ptr() != view.data_ptr():
        view.copy_(tensor)


def room_of(view: Tensor) -> Tensor | None:
    """What a reader may fill."""
    return view if view.device.type == "cpu" and view.is_contiguous() else None
