"""Parameters of which every rank keeps an equal part, cut along some dimensions, each over a group of ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from text_backbone.parallel.collectives import all_gather

Cut = tuple[tuple[int, dist.ProcessGroup], ...]
"""The dimensions of a tensor that are cut, and the ranks that have the parts in order."""


def part_of(whole: Tensor, cut: Cut) -> Tensor:
    """This rank's part, a view."""
    for dim, group in cut:
        whole = whole.chunk(dist.get_world_size(group), dim)[dist.get_rank(group)]
    return whole


def whole_of(part: Tensor, cut: Cut) -> Tensor:
    """The tensor of which each rank has a part; every rank of the groups calls this."""
    for dim, group in reversed(cut):
        if dist.get_world_size(group) > 1:
            part = torch.cat(all_gather(part.contiguous(), group).unbind(), dim)
    return part


def cut_parameter(whole: nn.Parameter, cut: Cut) -> nn.Parameter:
    """This rank's part, in memory of its own; learns if the whole does."""
    return nn.Parameter(part_of(whole.detach(), cut).clone(), requires_grad=whole.requires_grad)
