"""The shards of parameters that a process holds, and their whole: FSDP's, of what other dimensions have cut before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from text_backbone.parallel.cuts import Cut, part_of, whole_of


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def on_host(wholes: Iterable[tuple[str, Tensor]], keep: bool) -> dict[str, Tensor]:
    """Tensors, by name, that are gathered from all processes one after the other: no device has room for all.

    `keep`: False for a process that has only to help, and gets none.
    """
    kept = {}
    for name, whole in wholes:
        if keep:
            kept[name] = whole.cpu()
        del whole  # before the next one comes
    return kept


@dataclass(frozen=True)
class Shards:
    """How parameters are shared out, by their names; by default not but by FSDP, which tensors say themselves.

    Attributes:
        processes: that share them out.
        cuts: of those that were cut before FSDP sharded the parts.
        scales: by what to multiply gradients that FSDP has averaged over fewer processes than have a part in them.
    """

    processes: int = 1
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)

    def gather(self, name: str, part: Tensor, like: Tensor) -> Tensor:
        """The whole of a tensor that is shared out as parameter `name`, which is `like`, and of which this process
        holds `part`; a collective."""
        if isinstance(like, DTensor):
            part = DTensor.from_local(
                part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
            ).full_tensor()
        return whole_of(part, self.cuts.get(name, ()))

    def shard(self, name: str, whole: Tensor, like: Tensor) -> Tensor:
        """This process's part of `whole` if it is shared out as parameter `name`, which is `like`."""
        part = part_of(whole, self.cuts.get(name, ()))
        if not isinstance(like, DTensor):
            return part
        assert like.placements == (Shard(0),)
        mesh = like.device_mesh
        parts = part.chunk(mesh.size())
        rank = mesh.get_local_rank()
        return parts[rank] if rank < len(parts) else part[:0]

    def norm(self, part: Tensor) -> Tensor:
        """The norm of all gradients from that of this process's shards: each element is on one process alone."""
        if self.processes == 1:
            return part
        square = part.square()
        dist.all_reduce(square)
        return square.sqrt()
