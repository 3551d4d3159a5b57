"""Context parallelism: processes that share out every batch, each with a part of its tokens.

See `text_backbone.parallel.context` for which tokens. An image is encoded by every process that has any of its tokens,
mostly one: each then has the gradients of the tokens that it has, and nothing has to be sent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from text_backbone.parallel import ContextShard
from vl.training.batch import Batch


@dataclass(frozen=True)
class Context:
    """This process among those that share a batch out; alone by default.

    Attributes:
        rank, ranks: which of them it is, and of how many.
        group: all of them.
    """

    rank: int = 0
    ranks: int = 1
    group: dist.ProcessGroup | None = None

    def share(self, batch: Batch) -> Batch:
        """This process's part of a batch; all of it on every one if it has not even two tokens for each."""
        if self.ranks == 1 or len(batch.input_ids) < 2 * self.ranks:
            return batch
        return share_batch(batch, self.rank, self.ranks)

    def weight(self, part: Batch) -> float:
        """What a part counts for its batch: 1, but where every process has all of it."""
        return part.part[1] / self.ranks

    def sum(self, values: Tensor, part: Batch) -> Tensor:
        """The sum over the parts of a batch, in place."""
        if part.part[1] > 1:
            dist.all_reduce(values, group=self.group)
        return values


def share_batch(batch: Batch, rank: int, ranks: int) -> Batch:
    """What `rank` of `ranks` holds of a batch that is on the host; pinned if that is.

    Its `lengths`, `kinds` and `answer_lengths` are those of whole sequences and answers. Labels of patches are dropped.
    """
    shard = ContextShard.share(batch.lengths, rank, ranks, device="cpu")
    local = torch.full_like(batch.input_ids, -1)
    local[shard.rows] = torch.arange(shard.tokens)  # of each token its row here, -1 if it is elsewhere
    scored, rows = local[batch.scored], local[batch.image_rows]
    # Of each image token and each tile the image that it is of.
    tokens, tiles = (_counted([getattr(grid, of) for grid in batch.grids]) for of in ("tokens", "tiles"))
    images = tokens[rows >= 0].unique()  # of which any token is here
    mine = torch.isin(tokens, images)
    part = replace(
        batch,
        input_ids=shard.take(batch.input_ids),
        labels=shard.take(batch.labels),
        scored=scored[scored >= 0],
        answer_lengths=batch.answer_lengths[scored >= 0],
        image_rows=rows[rows >= 0],
        features=(rows[mine] >= 0).nonzero().flatten(),
        tiles=batch.tiles[torch.isin(tiles, images)],
        grids=tuple(batch.grids[i] for i in images.tolist()),
        patch_points=None,
        patch_labels=None,
        part=(rank, ranks),
    )
    return part.pin_memory() if batch.input_ids.is_pinned() else part


def _counted(counts: list[int]) -> Tensor:
    """0 as often as the first says, then 1, and so on."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
