"""Where a model keeps one tensor of a released checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """A place for one tensor of a checkpoint, however the model stores it.

    Attributes:
        shape: the tensor's in the checkpoint, which need not be that of what is stored.
        load: keeps the values of a tensor of that shape, of any float dtype and on any device: cast, packed, or the
            part of them that belongs here. Raises ValueError if a value is not finite as it is kept.
        read: the values as a tensor of that shape, in the dtype and on the device of the model; for a plain parameter
            a view of it.
        exact: whether its dtype is part of how the values are stored; files are then written in no other.
        room: where on the host the tensor is kept just as it is, contiguous: a reader whose tensor has this shape and
            dtype may fill it and give it to `load`, which then copies nothing. None where there is no such place.
    """

    shape: tuple[int, ...]
    load: Callable[[Tensor], None]
    read: Callable[[], Tensor]
    exact: bool = False
    room: Tensor | None = None

    @classmethod
    def of(cls, view: Tensor) -> Slot:
        """The slot of a plain parameter or of a part of one."""
        view = view.detach()

        def load(tensor: Tensor) -> None:
            if tensor.data_ptr() != view.data_ptr():  # it was not read straight to here
                view.copy_(tensor)
            # Extremes carry NaN along, and need no temporary the size of the tensor.
            if view.numel() and not view.is_meta and not torch.stack(torch.aminmax(view)).isfinite().all():
                raise ValueError("NaN or infinite values")

        host = view.device.type == "cpu" and view.is_contiguous()
        return cls(tuple(view.shape), load, lambda: view, room=view if host else None)
