"""The tensors of a whole checkpoint, as one rank of a split decoder has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from text_backbone.parallel.model import SplitText
from text_backbone.slot import Slot


def whole_slots(
    model: SplitText, here: Mapping[str, Slot], names: Iterable[tuple[str, tuple[int, ...], bool]]
) -> dict[str, Slot]:
    """A slot for every tensor of the whole model, in the order of `names`, which is the same on every rank.

    `load` keeps what belongs here, and forgets a tensor of which nothing does; each rank may load when it likes.
    `read` puts the tensor together and has to be called by all ranks, in the same order: it waits for them.

    Args:
        here: the slots of what this rank has any of, by released names.
        names: every tensor's name, shape, and whether its dtype is part of how its values are stored.
    """
    slots: dict[str, Slot] = {}
    for name, shape, exact in names:
        slot, owner = here.get(name), model.layout.owner(name)
        if owner is not None:
            read = partial(_copied, model, slot, owner)
            slots[name] = replace(slot, read=read) if slot else Slot(shape, _forget, read, exact)
        else:
            assert slot is not None
            slots[name] = slot if slot.part is None else replace(slot, read=partial(_joined, model, slot), part=None)
    return slots


def _forget(tensor: Tensor) -> None:
    """It is another rank's."""


def _copied(model: SplitText, slot: Slot | None, owner: int) -> Tensor:
    return model.group.copy_of(slot.read() if slot else None, owner)


def _joined(model: SplitText, slot: Slot) -> Tensor:
    """Every byte is some rank's and 0 on the others, so that their sum is exact."""
    assert slot.part is not None
    own = slot.read()
    whole = torch.empty(slot.shape, dtype=own.dtype, device=own.device)
    whole.view(torch.uint8).zero_()
    view = slot.part(whole)
    view.copy_(own.reshape(view.shape))
    dist.all_reduce(whole.view(torch.uint8), group=model.group.group)
    return whole
