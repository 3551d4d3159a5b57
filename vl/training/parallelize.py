"""Many processes under torchrun: parameters sharded by torch's FSDP2, applied to the model from outside.

Every process has batches of its own, or shares those of some neighbours by the dimensions of `ParallelConfig`;
gradients are averaged over all. What a process must agree on with the others
and the host needs to know (times, counts) goes through gloo, so that no GPU is waited for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from text_backbone.parallel import context_parallel, expert_parallel, tensor_parallel
from text_backbone.parallel.cuts import Cut
from vl.errors import DeviceError, TrainingError
from vl.model import MiniMaxVL
from vl.training.context import Context
from vl.training.dimensions import ParallelConfig
from vl.training.shards import Shards

_LET_GO_SECONDS = 1.0
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class World:
    """This process among `size`.

    Attributes:
        sharers: so many in a row have one batch together.
        patient: all processes, who wait for each other longer than for what they compute together.
    """

    rank: int = 0
    size: int = 1
    sharers: int = 1
    patient: dist.ProcessGroup | None = None

    @classmethod
    def join(cls, device: torch.device, parallel: ParallelConfig = ParallelConfig()) -> World:  # noqa: B008 (frozen)
        """The processes that torchrun started, connected; a world of one without torchrun.

        Raises ConfigError if they do not fit `parallel`.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        parallel.check_processes(size)
        if size == 1:
            return cls()
        if not dist.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(device)
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
        assert isinstance(patient, dist.ProcessGroup)  # not the mark of a process that is not in it
        return cls(dist.get_rank(), size, parallel.context * parallel.tensor, patient)

    @property
    def first(self) -> bool:
        """Whether this process writes the files and prints."""
        return self.rank == 0

    @property
    def groups(self) -> int:
        """How many have batches of their own."""
        return self.size // self.sharers

    @property
    def group(self) -> int:
        """Which of those this process is of."""
        return self.rank // self.sharers

    @property
    def tells(self) -> bool:
        """Whether this process says what happened to its batches: of those that share them, one does."""
        return self.rank % self.sharers == 0

    def sum(self, value: float) -> float:
        """The sum of a number over all processes."""
        return value if self.size == 1 else self._agree(value, dist.ReduceOp.SUM)

    def sum_of_batches(self, value: float) -> float:
        """The sum over all groups of a number that every process has of its group's whole batches."""
        return self.sum(value) / self.sharers

    def slowest(self, seconds: float) -> float:
        """The greatest of the processes' numbers, so that all see the same clock."""
        return seconds if self.size == 1 else self._agree(seconds, dist.ReduceOp.MAX)

    def least(self, count: int) -> int:
        """The least of the processes' numbers."""
        return -int(self.slowest(-count))

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
        """Waits for all processes, as long as it takes: the first may have a large model to write, or data to measure.

        The groups that compute together give up after half an hour, NCCL's after ten minutes. A process that ends is
        noticed at once all the same.
        """
        if self.size > 1:
            dist.all_reduce(torch.zeros(()), group=self.patient)

    def _agree(self, value: float, how: dist.ReduceOp.RedOpType) -> float:
        agreed = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(agreed, how)
        return float(agreed)


@contextmanager
def together() -> Iterator[None]:
    """A block in which processes talk to each other. Raises TrainingError where another could not be talked to."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "/gloo/" in str(error)):  # gloo has no class of its own for it
            raise
        raise TrainingError(
            "another process of this run has ended or does not answer, and this one cannot go on without it: what that "
            "said is above, or how it ended in torchrun's report; --resume goes on from the newest checkpoint"
        ) from error


def local_device(device: torch.device) -> torch.device:
    """The device of this process, where torchrun started several: each has a GPU of its own, or all are on the CPU.

    Raises DeviceError if there is none for it.
    """
    here, count = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and device.type not in ("cpu", "cuda"):
        raise DeviceError(f"processes on {device.type!r} cannot talk to each other: start one, or write device='cpu'")
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    if device.index is not None:
        if count > 1:
            raise DeviceError(
                f"device {str(device)!r} is one GPU, and torchrun started {count} processes on this host, and each "
                "needs its own: write 'cuda', and choose GPUs by CUDA_VISIBLE_DEVICES"
            )
        return device
    if here >= (gpus := torch.cuda.device_count()):
        raise DeviceError(
            f"torchrun started {count} processes on this host, which has {gpus} GPU{'s' * (gpus != 1)}, and each needs "
            f"its own: start {gpus} (torchrun --nproc-per-node {gpus}), or write device='cpu'"
        )
    return torch.device("cuda", here)


def join_context(model: MiniMaxVL, world: World, device: torch.device, parallel: ParallelConfig) -> Context:
    """Lets the decoder take parts of batches; the processes that share them with this one. Before `parallelize`."""
    ranks = parallel.context
    if ranks == 1:
        return Context()
    mesh = _mesh(device, fsdp=world.groups, context=ranks, tensor=parallel.tensor)["context"]
    context_parallel(model.language_model, mesh.get_group(), device)
    return Context(mesh.get_local_rank(), ranks, mesh.get_group())


def parallelize(
    root: nn.Module, model: MiniMaxVL, world: World, device: torch.device, parallel: ParallelConfig
) -> Shards:
    """Shards every parameter of `root`, the module that a training step calls and that holds `model`.

    Attention and experts of each layer are gathered when they run. Everything else is gathered for the whole step: a
    layer's norm weights, which the layer before it reads, and the ViT, which processes run on different numbers of
    tiles and so cannot gather in step. What other dimensions have cut is sharded over the processes that have the same
    part of it.
    """
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    text, everyone = model.language_model, _mesh(device, fsdp=world.size)
    heads = experts = everyone
    cuts: dict[str, Cut] = {}
    if parallel.tensor > 1:
        mesh = _mesh(device, fsdp=world.size // parallel.tensor, tensor=parallel.tensor)
        cuts |= tensor_parallel(text, mesh["tensor"].get_group())
        heads = mesh["fsdp"]
    shared = parallel.expert * parallel.expert_tensor
    if shared > 1:
        sizes = {"expert": parallel.expert, "expert_tensor": parallel.expert_tensor}
        mesh = _mesh(device, fsdp=world.size // shared, **sizes)
        cuts |= expert_parallel(text, mesh["expert", "expert_tensor"], device, parallel.expert_groups)
        experts = mesh["fsdp"]
    for module in (text.embed_tokens, text.lm_head):
        fully_shard(module, mesh=everyone, mp_policy=policy)
    alone: set[nn.Parameter] = set()  # parts that no other process has: FSDP would only copy them
    for layer in text.layers:
        # Experts without their router, which is everyone's.
        moe = "block_sparse_moe.experts" if shared > 1 else "block_sparse_moe"
        for name, mesh in (("self_attn", heads), (moe, experts)):
            if mesh.size() > 1:
                fully_shard(layer.get_submodule(name), mesh=mesh, mp_policy=policy)
            else:
                alone |= set(layer.get_submodule(name).to(device).parameters())
    fully_shard(root, mesh=everyone, mp_policy=policy, reshard_after_forward=False, ignored_params=alone)
    register_fsdp_forward_method(root, "scored_logits")
    prefix = next(f"{name}." for name, module in root.named_modules() if module is text)
    # FSDP takes the mean over the processes of its mesh. A gradient of experts is over the tokens of all that share
    # them, of which those with the same batch have a part each, and the mean over batches is wanted.
    names = (name for name, _ in root.named_parameters() if ".block_sparse_moe.experts." in name)
    scales = dict.fromkeys(names, parallel.tensor / shared)
    return Shards(world.size, {prefix + name: cut for name, cut in cuts.items()}, scales)


@contextmanager
def gathered(root: nn.Module) -> Iterator[None]:
    """A block in which what `root` gathers for a whole step, such as the ViT, can be called by itself."""
    if not isinstance(root, FSDPModule):
        yield
        return
    root.unshard()
    try:
        yield
    finally:
        root.reshard()


def _mesh(device: torch.device, **sizes: int) -> DeviceMesh:
    """All processes on a mesh of these dimensions, the last one's being neighbours."""
    return init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
