"""What the ranks of a group tell each other: NCCL on GPUs, gloo on CPUs, and symmetric memory for short messages."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from traceback import clear_frames

import torch
import torch.distributed as dist
from torch import Tensor

from text_backbone.shortage import is_exhausted

# Up to here one kernel that reads every GPU's message beats NCCL's rings: on two H200s 12 KiB take 6.4 us against 18.6.
SHORT = 256 * 1024  # bytes
_DTYPES = (torch.bfloat16, torch.float32)  # that torch's one-shot kernel adds
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its older name


class Collectives:
    """Sums and copies over the ranks of a group, which every rank calls in the same order. None has gradients.

    Every rank gets the same bits: what is computed of a sum, such as the choice of experts, is then the same too. NCCL
    and gloo add each element once and pass it on. The one-shot kernel adds on every rank, but in the order of ranks. It
    adds in the messages' dtype, so that a sum of bf16 over n ranks is rounded n - 1 times, as in NCCL's ring. Multicast
    (`multimem`), which may add in another order on every rank, is not used.

    A CUDA graph may capture all of them: nothing waits for the device, and the symmetric memory stays where it is.

    Args:
        group: None for all processes.
        device: of the tensors.

    Attributes:
        shortage: of memory, that an `attempt` has met; whoever looks takes it away.
    """

    shortage: Exception | None = None

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self.group: dist.ProcessGroup = group if group is not None else dist.group.WORLD  # type: ignore[assignment]
        self.device = device
        self.rank, self.ranks = dist.get_rank(self.group), dist.get_world_size(self.group)
        self._buffers = _symmetric(self.group, device) if device.type == "cuda" and self.ranks > 1 else {}

    def attempt(self, work: Callable[[], Tensor], instead: Callable[[], Tensor]) -> Tensor:
        """What `work` gives, which is this rank's alone to do; what `instead` gives if memory runs out in it.

        The other ranks wait for this one's messages, however little it has to say. So it goes on to the end of the
        pass, whose results are of no use then on any rank, and tells of the `shortage` there.
        """
        try:
            return work()
        except Exception as error:
            if not is_exhausted(error):
                raise
            clear_frames(error.__traceback__)  # they hold what was allocated so far
            self.shortage = error.with_traceback(None)
        return instead()

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks of a contiguous tensor, which may be overwritten."""
        _check(x)
        buffer = self._buffers.get(x.dtype)
        # The kernel reads words, and wants x to be aligned as the buffer is.
        if buffer is not None and 0 < x.nbytes <= SHORT and x.nbytes % 4 == 0 and x.data_ptr() % 16 == 0:
            room = buffer[: x.numel()].view(x.shape)
            return torch.ops.symm_mem.one_shot_all_reduce_copy(room, x, "sum", self.group.group_name)
        dist.all_reduce(x, group=self.group)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's contiguous tensor, one after the other: [ranks, *x.shape]."""
        _check(x)
        return all_gather(x, self.group)

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """The tensor of rank `source`, in the place of every other's."""
        _check(x)
        dist.broadcast(x, group=self.group, group_src=source)
        return x

    def send(self, x: Tensor, to: int) -> None:
        _check(x)
        dist.send(x, group=self.group, group_dst=to)

    def receive(self, x: Tensor, source: int) -> Tensor:
        """What rank `source` sends, in the place of x."""
        dist.recv(x, group=self.group, group_src=source)
        return x

    def copy_of(self, x: Tensor | None, source: int) -> Tensor:
        """The tensor of rank `source`, of a shape and dtype that the others need not know. Waits, and is slow."""
        box = [x.cpu() if x is not None and self.rank == source else None]
        dist.broadcast_object_list(box, group=self.group, group_src=source, device=self.device)
        assert box[0] is not None
        return box[0].to(self.device)


def all_gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Every rank's contiguous tensor, one after the other: [ranks, *x.shape]."""
    out = x.new_empty(dist.get_world_size(group), *x.shape)
    _all_gather(out.flatten(0, 1) if x.dim() else out, x, group=group)
    return out


def _check(x: Tensor) -> None:
    if x.requires_grad:
        raise RuntimeError("a model that is split over ranks has no gradients: call it under torch.no_grad()")
    assert x.is_contiguous()


def _symmetric(group: dist.ProcessGroup, device: torch.device) -> dict[torch.dtype, Tensor]:
    """Memory for a short message that every GPU of the group reads, by dtype; empty where there is no such memory."""
    from torch.distributed import _symmetric_memory as symmetric

    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")  # or the driver would set up what is not used
    buffers: dict[torch.dtype, Tensor] = {}
    reason = ""
    try:
        for dtype in _DTYPES:
            buffers[dtype] = symmetric.empty(SHORT // dtype.itemsize, dtype=dtype, device=device)
            symmetric.rendezvous(buffers[dtype], group)
    except RuntimeError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    worked = torch.tensor(not reason, dtype=torch.int32, device=device)
    dist.all_reduce(worked, op=dist.ReduceOp.MIN, group=group)  # all ranks do the same, or they would wait for ever
    if worked.item():
        return buffers
    if reason:
        warnings.warn(
            f"these GPUs share no memory ({reason}): short messages go through NCCL, which is slower", stacklevel=4
        )
    return {}
