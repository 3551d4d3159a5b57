"""`vl.engine.identity` of a model that lies on several ranks, each of which has some of the values that count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from text_backbone.parallel import SplitText
from text_backbone.parallel.wholes import placed
from vl.engine.identity import Sample, on_host, sampled, samples, tensors


class Values(NamedTuple):
    """Of one tensor: which of the sampled values are here (`places`: 0 is the first), and their bytes."""

    places: Sequence[int]
    data: bytes


Found = Mapping[str, Values]
"""By the tensor's name in the whole model."""


@torch.inference_mode()
def values_here(part: nn.Module) -> Found:
    """What a rank has of a part of a model."""
    if not isinstance(part, SplitText):
        return {s.name: Values(range(len(sampled(torch.Size(s.shape).numel()))), s.values) for s in samples(part)}
    names, places, taken = [], [], []
    for each in placed(part):
        wanted = enumerate(map(each.index, sampled(each.size)))
        own = {place: index for place, index in wanted if index is not None}
        names.append(each.name)
        places.append(list(own))
        taken.append(each.tensor.flatten()[torch.tensor(list(own.values()), dtype=torch.int64).to(each.tensor.device)])
    return dict(zip(names, map(Values, places, on_host(taken)), strict=True))


def joined(part: nn.Module, found: Sequence[Found]) -> list[Sample]:
    """The samples of a part of a model that is whole, but on `meta`, from what every rank has found."""
    return [
        Sample(name, tuple(tensor.shape), tensor.dtype, _bytes(tensor, [f[name] for f in found if name in f]))
        for name, tensor in tensors(part)
    ]


def _bytes(tensor: torch.Tensor, found: Sequence[Values]) -> bytes:
    size, out = tensor.itemsize, bytearray(len(sampled(tensor.numel())) * tensor.itemsize)
    for values in found:
        for i, place in enumerate(values.places):
            out[place * size : (place + 1) * size] = values.data[i * size : (i + 1) * size]
    return bytes(out)
