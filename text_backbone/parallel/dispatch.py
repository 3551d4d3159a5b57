"""Expert parallelism (EP) and expert tensor parallelism (ETP) with an all-to-all, as in MiniMax-01 (arXiv:2501.08313).

Ranks with tokens of their own share the experts out: on a mesh of two dimensions, `expert` and `expert_tensor`, rank
(e, t) has the e-th run of whole experts, and of each of these the t-th part of its inner units. A layer then

    1. lays this rank's assignments (a token and one of its experts) in the order of the ranks that have the experts,
    2. sends each over the dimension `expert` to where its expert is: an all-to-all of uneven splits,
    3. gives the rows that came to the other ranks of `expert_tensor`, which have the rest of the same experts,
    4. runs its part of its experts on all of these, weighted,
    5. sums over `expert_tensor` for the rows that came to this rank in 2, and sends them back,
    6. sums what came back for each token, in float32.

Nothing is dropped, whatever the router says: how many rows go where is exchanged first, and is all that the host waits
for. The rows may go in groups of experts: while one group is multiplied, the next is on its way and the last one goes
back, in the backward pass too. An expert is in one group, so that its gradient is made once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from text_backbone.kernels.moe import expert_mlp
from text_backbone.model import MiniMaxText
from text_backbone.moe import Experts
from text_backbone.parallel.collectives import all_gather
from text_backbone.parallel.cuts import Cut, cut_parameter
from text_backbone.parallel.exchange import Lane, collect, exchange, linear_map, reduce, sum_of

Counts = Sequence[Sequence[Sequence[int]]]  # of each rank (e, t) its assignments by place in `Sharing.order`


@dataclass(frozen=True)
class Sharing:
    """Which rank has what of the experts.

    Attributes:
        experts: of a layer.
        ranks: of the dimension `expert`.
        groups: into which the experts of a rank are cut; the messages of one overlap the work of another.
    """

    experts: int
    ranks: int
    groups: int = 1

    @property
    def own(self) -> int:
        """Experts of a rank."""
        return self.experts // self.ranks

    @property
    def bounds(self) -> tuple[int, ...]:
        """Where each group begins among a rank's experts, and the end of the last."""
        return tuple(self.own * g // self.groups for g in range(self.groups + 1))

    @property
    def order(self) -> tuple[int, ...]:
        """All experts as their rows are sent: by group, then by the rank that has them."""
        runs = ((e, first, stop) for first, stop in pairwise(self.bounds) for e in range(self.ranks))
        return tuple(e * self.own + i for e, first, stop in runs for i in range(first, stop))

    def places(self, group: int, rank: int) -> range:
        """Where in `order` the experts lie that `rank` has of a group."""
        first, stop = self.bounds[group : group + 2]
        start = self.ranks * first + rank * (stop - first)
        return range(start, start + stop - first)


@cache
def place_table(sharing: Sharing, device: torch.device) -> Tensor:
    """int64 [E], where in `Sharing.order` each expert is."""
    with torch.inference_mode(False):  # the cached tensor has to serve training too
        return torch.tensor(sharing.order).argsort().to(device)


@dataclass(frozen=True)
class Turn:
    """The messages of one group of experts, as one rank sees them, in rows.

    Attributes:
        send, receive: to and from each rank of the dimension `expert`.
        shared: that came to each rank of `expert_tensor`.
    """

    send: tuple[int, ...]
    receive: tuple[int, ...]
    shared: tuple[int, ...]

    @classmethod
    def of(cls, counts: Counts, sharing: Sharing, group: int, e: int, t: int) -> Turn:
        def rows(source: int, part: int, rank: int) -> int:
            return sum(counts[source][part][i] for i in sharing.places(group, rank))

        ranks, parts = range(sharing.ranks), range(len(counts[0]))
        return cls(
            send=tuple(rows(e, t, rank) for rank in ranks),
            receive=tuple(rows(source, t, e) for source in ranks),
            shared=tuple(sum(rows(source, part, e) for source in ranks) for part in parts),
        )


class DispatchedExperts(Experts):
    """A rank's part of the experts `whole`, over the tokens of all ranks of a mesh: see above.

    Called by all of them, in the same order, each with its own tokens, of which it may have none. In a pass that is
    differentiated x has to need a gradient on all of them. The gradients of the weights are over the tokens of all.

    Args:
        mesh: of the dimensions `expert` and `expert_tensor`.
        groups: of experts, see `Sharing`; 1 overlaps nothing.
        lane: for the messages.
    """

    def __init__(self, whole: Experts, mesh: DeviceMesh, groups: int, lane: Lane) -> None:
        nn.Module.__init__(self)
        self.expert_group, self.tensor_group = mesh["expert"].get_group(), mesh["expert_tensor"].get_group()
        self.rank, self.part = mesh.get_local_rank("expert"), mesh.get_local_rank("expert_tensor")
        self.sharing = Sharing(len(whole.w13), dist.get_world_size(self.expert_group), groups)
        self.lane = lane
        self.cut: Cut = ((0, self.expert_group), (2, self.tensor_group))  # of w13 [E, 2, I, hidden]
        self.w13 = cut_parameter(whole.w13, self.cut)
        self.w2 = cut_parameter(whole.w2, self.cut)  # [E, hidden, I]

    def forward(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        tokens, top_k = experts.shape
        order, counts = self._sorted(experts)
        place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        token = order // top_k

        def spread(rows: Tensor) -> Tensor:  # a row for each assignment
            return rows.index_select(0, token)

        def gathered(rows: Tensor) -> Tensor:
            return sum_of(rows.index_select(0, place).view(tokens, top_k, rows.shape[-1]), 1)

        every = self._everyones(counts)
        told: Counts = every.tolist()
        turns = [Turn.of(told, self.sharing, g, self.rank, self.part) for g in range(self.sharing.groups)]
        sizes = [sum(turn.send) for turn in turns]
        rows = linear_map(x, spread, gathered).split(sizes)
        scales = weights.flatten().index_select(0, order).split(sizes)
        results = self._in_turns(rows, scales, turns, every)
        return linear_map(torch.cat(results), gathered, spread)

    def _in_turns(
        self, rows: Sequence[Tensor], scales: Sequence[Tensor], turns: Sequence[Turn], every: Tensor
    ) -> list[Tensor]:
        """What comes back of each group's rows. Each group's messages start before the work on the one before it."""
        w13, w2 = self._weights()
        arriving = self.lane.run(partial(self._bring, turns[0]), rows[0], scales[0])
        returning = []
        for g, turn in enumerate(turns):
            arrived = arriving
            if g + 1 < len(turns):
                arriving = self.lane.run(partial(self._bring, turns[g + 1]), rows[g + 1], scales[g + 1])
            here, weights = arrived()
            own = partial(_expert_mlp, w13=w13[g], w2=w2[g])
            out = run_experts(own, here, weights.unsqueeze(-1), self._experts(every, g, turn).unsqueeze(-1))
            returning.append(self.lane.run(partial(self._give_back, turn), out))
        return [wait()[0] for wait in returning]

    def _sorted(self, experts: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [T * k], the assignments in the order in which they are sent; and int64 [E], how many of each."""
        chosen, order = place_table(self.sharing, experts.device)[experts.flatten()].sort(stable=True)
        ends = torch.searchsorted(chosen, torch.arange(1, self.sharing.experts + 1, device=experts.device))
        return order, ends.diff(prepend=ends.new_zeros(1))

    def _everyones(self, counts: Tensor) -> Tensor:
        """int64 [ranks, parts, E]: the counts of all."""
        return all_gather(all_gather(counts, self.tensor_group), self.expert_group)

    def _weights(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Those of each group."""
        if self.sharing.groups == 1:
            return (self.w13,), (self.w2,)
        sizes = [stop - first for first, stop in pairwise(self.sharing.bounds)]
        return self.w13.split(sizes), self.w2.split(sizes)

    def _experts(self, every: Tensor, group: int, turn: Turn) -> Tensor:
        """int64 [n], the expert, of those of the group that are here, of each row that `_bring` brings."""
        places = self.sharing.places(group, self.rank)
        lengths = every[:, :, places.start : places.stop].transpose(0, 1)  # [parts, ranks, experts], as rows come
        ids = torch.arange(len(places), device=every.device).expand_as(lengths)
        return torch.repeat_interleave(ids.flatten(), lengths.flatten(), output_size=sum(turn.shared))

    def _bring(self, turn: Turn, rows: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """The rows for this rank's part of a group of experts, and their weights, by `expert_tensor` and `expert`."""
        rows, scales = (exchange(each, turn.send, turn.receive, self.expert_group) for each in (rows, scales))
        rows, scales = (collect(each, turn.shared, self.tensor_group) for each in (rows, scales))
        return rows, scales

    def _give_back(self, turn: Turn, rows: Tensor) -> tuple[Tensor]:
        """What the experts made of the rows that this rank sent."""
        rows = reduce(rows, turn.shared, self.tensor_group)
        return (exchange(rows, turn.receive, turn.send, self.expert_group),)


def _expert_mlp(x: Tensor, weights: Tensor, experts: Tensor, *, w13: Tensor, w2: Tensor) -> Tensor:
    return expert_mlp(x, w13, w2, weights, experts)


def run_experts(experts: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """`experts(x, weights, ids)` of any number of rows, 0 included.

    Of none it is that of a row of zeros, so that everything has a gradient: other ranks wait for this one's.
    """
    if len(x):
        return experts(x, weights, ids)
    return experts(*(F.pad(each, (0, 0, 0, 1)) for each in (x, weights, ids)))[:0]


def expert_parallel(model: MiniMaxText, mesh: DeviceMesh, device: torch.device, groups: int = 1) -> dict[str, Cut]:
    """Shares the experts of every layer out over a mesh, in place: see `DispatchedExperts`.

    Called by all ranks, which all hold the whole decoder, or all of it on the meta device.

    Args:
        mesh: of the dimensions `expert` and `expert_tensor`.
        device: on which the decoder is to run.
        groups: of a rank's experts, whose messages overlap each other's work.

    Returns:
        How the weights are cut, by their names in the decoder.

    Raises:
        ValueError: if the experts cannot be shared out so, or are quantised or shared out already.
    """
    config, ranks, parts = model.config, mesh["expert"].size(), mesh["expert_tensor"].size()
    if config.num_local_experts % ranks:
        raise ValueError(f"{config.num_local_experts} experts cannot be shared out evenly over {ranks} ranks")
    if config.intermediate_size % parts:
        raise ValueError(f"{config.intermediate_size} inner units cannot be shared out evenly over {parts} ranks")
    if groups > config.num_local_experts // ranks:
        raise ValueError(f"the {config.num_local_experts // ranks} experts of a rank do not make {groups} groups")
    lane = Lane(device)
    cuts: dict[str, Cut] = {}
    for i, layer in enumerate(model.layers):
        moe = layer.get_submodule("block_sparse_moe")
        whole = moe.get_submodule("experts")
        if type(whole) is not Experts:
            raise ValueError(f"experts held as {type(whole).__name__} cannot be shared out: give a whole decoder")
        moe.experts = own = DispatchedExperts(whole, mesh, groups, lane)
        cuts |= {f"layers.{i}.block_sparse_moe.experts.{name}": own.cut for name in ("w13", "w2")}
    return cuts
