"""Many processes under torchrun: parameters sharded by torch's FSDP2, applied to the model from outside.

Every process has batches of its own, or with context parallelism a part of those of `context` neighbours; gradients are
averaged over all. What a process must agree on with the others
and the host needs to know (times, counts) goes through gloo, so that no GPU is waited for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from text_backbone.parallel import context_parallel
from vl.errors import ConfigError
from vl.model import MiniMaxVL
from vl.training.context import Context

_LET_GO_SECONDS = 0.3


@dataclass(frozen=True)
class World:
    """This process among `size`, of which each `context` in a row share their batches out."""

    rank: int = 0
    size: int = 1
    context: int = 1

    @classmethod
    def join(cls, device: torch.device, context: int = 1) -> World:
        """The processes that torchrun started, connected; a world of one without torchrun.

        Raises ConfigError if they are no multiple of `context`.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size % context:
            raise ConfigError(
                f"parallel.context = {context} shares every batch out over {context} processes, and {size} cannot be "
                f"divided by that: start a multiple of {context} (torchrun --nproc-per-node {context}), or lower it"
            )
        if size == 1:
            return cls()
        if not dist.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(device)
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), size, context)

    @property
    def first(self) -> bool:
        """Whether this process writes the files and prints."""
        return self.rank == 0

    @property
    def groups(self) -> int:
        """How many have batches of their own."""
        return self.size // self.context

    @property
    def group(self) -> int:
        """Which of those this process is of."""
        return self.rank // self.context

    def sum(self, value: float) -> float:
        """The sum of a number over all processes."""
        return value if self.size == 1 else self._agree(value, dist.ReduceOp.SUM)

    def sum_of_batches(self, value: float) -> float:
        """The sum over all groups of a number that every process has of its group's whole batches."""
        return self.sum(value) / self.context

    def slowest(self, seconds: float) -> float:
        """The greatest of the processes' numbers, so that all see the same clock."""
        return seconds if self.size == 1 else self._agree(seconds, dist.ReduceOp.MAX)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of device tensors over all processes."""
        if self.size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values / self.size

    def leave(self) -> None:
        """Disconnects, all at once: a process that exits while others still talk to it takes them down."""
        if self.size > 1:
            dist.barrier()
            dist.destroy_process_group()
            # Gloo's threads outlive the group. One that lets go of its last tensor while the interpreter shuts down
            # aborts the process (pytorch/pytorch#179291).
            time.sleep(_LET_GO_SECONDS)

    def barrier(self) -> None:
        """Waits for all processes."""
        self.sum(0.0)

    def _agree(self, value: float, how: dist.ReduceOp.RedOpType) -> float:
        agreed = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(agreed, how)
        return float(agreed)


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process, where torchrun started several."""
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def join_context(model: MiniMaxVL, world: World, device: torch.device) -> Context:
    """Lets the decoder take parts of batches; the processes that share them with this one. Before `parallelize`."""
    if world.context == 1:
        return Context()
    mesh = init_device_mesh(device.type, (world.groups, world.context), mesh_dim_names=("data", "context"))
    group = mesh["context"].get_group()
    context_parallel(model.language_model, group, device)
    return Context(world.rank % world.context, world.context, group)


def parallelize(root: nn.Module, model: MiniMaxVL, world: World, device: torch.device) -> None:
    """Shards every parameter of `root`, the module that a training step calls and that holds `model`.

    Attention and experts of each layer are gathered when they run. Everything else is gathered for the whole step: a
    layer's norm weights, which the layer before it reads, and the ViT, which processes run on different numbers of
    tiles and so cannot gather in step.
    """
    mesh = init_device_mesh(device.type, (world.size,))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    text = model.language_model
    groups: list[nn.Module] = [text.embed_tokens, text.lm_head]
    for layer in text.layers:
        groups += [layer.get_submodule("self_attn"), layer.get_submodule("block_sparse_moe")]
    for group in groups:
        fully_shard(group, mesh=mesh, mp_policy=policy)
    fully_shard(root, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    register_fsdp_forward_method(root, "scored_logits")


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather(part: Tensor, like: Tensor) -> Tensor:
    """The whole of a tensor that is sharded as `like` and of which this process holds `part`; a collective."""
    if not isinstance(like, DTensor):
        return part
    sharded = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return sharded.full_tensor()


def shard(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of `whole` if it is sharded as `like`."""
    if not isinstance(like, DTensor):
        return whole
    assert like.placements == (Shard(0),)
    mesh = like.device_mesh
    parts = whole.chunk(mesh.size())
    rank = mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else whole[:0]


def norm_of_shards(norm: Tensor, params: Sequence[Tensor]) -> Tensor:
    """The norm of whole gradients from that of this process's shards."""
    if not isinstance(params[0], DTensor):
        return norm
    square = norm.square()
    dist.all_reduce(square)
    return square.sqrt()
