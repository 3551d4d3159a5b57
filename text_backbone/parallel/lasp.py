"""Lightning attention over context ranks: LASP-2 (arXiv:2502.07563), which is LASP+ of MiniMax-01 (arXiv:2501.08313).

Every chunk of the batch gives what its own tokens add to the state of its last sequence, [heads, d, d] whatever their
number. All ranks get all of these in one message, and each adds up what comes before its own chunks:

    S_c = sum over earlier chunks j of the sequence of exp(-s (tokens of it between j and c)) G_j

No rank waits for another's result. The backward pass is the same in the other direction: a chunk gives the sum of
q^T do of its first sequence, decayed to its first token, and adds up what comes after. Nothing overlaps the message: at
full size it is 8 to 32 MiB from each rank, a few hundredths of the time of a layer over 16 k tokens a rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from text_backbone.kernels.lightning import Link, lightning_attention
from text_backbone.packed import sent
from text_backbone.parallel.collectives import all_gather
from text_backbone.parallel.context import Chunk, ContextShard


def lasp_attention(
    qkv: Tensor, slopes: Tensor, shard: ContextShard, group: dist.ProcessGroup, states: Tensor | None = None
) -> Tensor:
    """Lightning attention over sequences of which every rank of `group` has its part.

    Called by all ranks, in the same order. If it is to be differentiated, `qkv` needs gradients on all of them: every
    rank waits for the others in the backward pass too.

    Args:
        qkv: [T, heads * 3 * d], the fused projection of this rank's tokens.
        slopes: float32 [heads].
        states: float32 [slots, heads, d, d], of a shard with `cached`: read, and left as all tokens of the batch make
            them, on every rank.

    Returns:
        [T, heads * d].
    """
    if states is None and not any(chunk.pieces[-1].leaves for chunk in shard.chunks):
        return lightning_attention(qkv, slopes, shard)
    return lightning_attention(qkv, slopes, shard, states, shard.memo(link_of, group))


def link_of(shard: ContextShard, group: dist.ProcessGroup) -> Link:
    """The first and the last piece of each chunk, whether or not they begin and end there: all ranks do the same."""
    ends = tuple(accumulate((len(chunk.pieces) for chunk in shard.own), initial=0))
    lengths = sent([tuple(chunk.length for chunk in shard.chunks)], shard.offsets.device)[0]
    slot = shard.cached.slot_ids[0] if shard.cached else 0
    states = States(shard.chunks, shard.held, shard.rank, slot, lengths, group)
    return Link(takes=ends[:-1], gives=tuple(end - 1 for end in ends[1:]), exchange=states.exchange)


@dataclass(frozen=True)
class States:
    """What chunks give and take.

    Attributes:
        chunks, held, rank: those of `ContextShard`.
        slot: of a cache, where the batch is one sequence that has it.
        lengths: int64 [chunks], tokens of each.
        group: the ranks.
    """

    chunks: tuple[Chunk, ...]
    held: tuple[tuple[int, ...], ...]
    rank: int
    slot: int
    lengths: Tensor
    group: dist.ProcessGroup

    def exchange(self, given: Tensor, slopes: Tensor, reverse: bool, states: Tensor | None) -> Tensor:
        """The `Link.exchange` of this rank's chunks: given and taken [chunks, heads, d, d]."""
        gathered = all_gather(given, self.group).flatten(0, 1)
        place = {chunk: i for i, chunk in enumerate(chunk for own in self.held for chunk in own)}
        faded = torch.exp(-slopes * self.lengths[:, None])[..., None, None]  # [chunks, heads, 1, 1]
        own = self.held[self.rank]
        taken = torch.zeros_like(given)
        # What comes of the chunks so far; None where no sequence passes.
        state = None if states is None else states[self.slot].to(given.dtype)
        for i in range(len(self.chunks))[::-1] if reverse else range(len(self.chunks)):
            pieces = self.chunks[i].pieces
            if i in own and state is not None:
                taken[own.index(i)] = state
            through = state if len(pieces) == 1 else None  # of a sequence that passes through
            state = gathered[place[i]]
            if through is not None:
                state = torch.addcmul(state, through, faded[i])
            if states is None and not (pieces[0].enters if reverse else pieces[-1].leaves):
                state = None
        if states is not None:
            assert state is not None
            states[self.slot] = state
        return taken
