"""Modules of a split decoder, in the place of those whose names and parameters they have."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from text_backbone.cache import MarkedStates, PagedKV
from text_backbone.head import OutputHead
from text_backbone.kernels.moe import route
from text_backbone.kernels.norms import divided, gated_norm_of, gated_part, row_squares
from text_backbone.kernels.norms.reference import tail_columns
from text_backbone.lightning import LightningAttention, attend
from text_backbone.linear import project, project_to
from text_backbone.moe import SparseMoE
from text_backbone.norms import ResidualNorm
from text_backbone.packed import Packed
from text_backbone.parallel.collectives import Collectives
from text_backbone.parallel.layout import Layout
from text_backbone.softmax import SoftmaxAttention
from text_backbone.spill import SpilledExperts

_STATIC = (
    1024  # assignments up to which experts on a GPU run on all of them, without asking the device which are theirs
)


class SplitEmbedding(nn.Module):
    """Some rows of the embedding: every rank looks its own tokens up, and the sum of all is the embeddings."""

    def __init__(self, layout: Layout, group: Collectives, *, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.group = group
        self.start, self.stop = layout.share(layout.config.vocab_size)
        rows = torch.empty(self.stop - self.start, layout.config.hidden_size, device="meta", dtype=dtype)
        self.weight = nn.Parameter(rows)

    def forward(self, input_ids: Tensor) -> Tensor:
        """int64 [T] -> [T, hidden]."""
        elsewhere = (input_ids < self.start) | (input_ids >= self.stop)
        rows = F.embedding((input_ids - self.start).masked_fill(elsewhere, 0), self.weight)
        return self.group.all_reduce(rows.masked_fill_(elsewhere.unsqueeze(-1), 0))


class SplitHead(OutputHead):
    """Some rows of the output head: each rank makes the logits of its tokens, and all get all."""

    def __init__(self, layout: Layout, group: Collectives, *, dtype: torch.dtype | None) -> None:
        vocab = layout.config.vocab_size
        shares = [layout.share(vocab, rank) for rank in range(layout.ranks)]
        self.sizes = [stop - start for start, stop in shares]
        super().__init__(layout.config.hidden_size, self.sizes[layout.rank], device="meta", dtype=dtype)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] -> float32 [..., vocab]."""
        longest = max(self.sizes)  # messages are of one length
        own = self.group.attempt(
            partial(self._own, x, longest), lambda: x.new_zeros(*x.shape[:-1], longest, dtype=torch.float32)
        )
        every = self.group.all_gather(own)
        return torch.cat([part[..., :size] for part, size in zip(every, self.sizes, strict=True)], dim=-1)

    def _own(self, x: Tensor, width: int) -> Tensor:
        own = super().forward(x)
        return F.pad(own, (0, width - own.shape[-1])).contiguous()


class SplitSoftmaxAttention(SoftmaxAttention):
    """Some heads: `o_proj` has their columns, and the sum over ranks is the output."""

    def __init__(self, layout: Layout, group: Collectives, *, dtype: torch.dtype | None) -> None:
        super().__init__(layout.local, device="meta", dtype=dtype)
        self.group = group

    def forward(self, x: Tensor, packed: Packed, table: Tensor, pages: PagedKV | None) -> Tensor:
        own = partial(super().forward, x, packed, table, pages)
        return self.group.all_reduce(self.group.attempt(own, lambda: x))


class SplitLightningAttention(LightningAttention):
    """Some heads: `out_proj` has their columns, and the sum over ranks is the output.

    The norm before `out_proj` is over the heads of all ranks. What it divides by is one number a token, and `out_proj`
    is linear: so each rank projects what is not divided yet, the squares travel behind the projection in the same
    message, and every rank divides the sum. A message less is worth it: a short one takes as long as a small product.
    Nothing is lost in float32 and bfloat16, whose rounding is relative at every size that occurs; in float16, where
    what is not divided could be too large, the squares go first.
    """

    def __init__(self, layout: Layout, group: Collectives, layer: int, *, dtype: torch.dtype | None) -> None:
        super().__init__(layout.local, layer, device="meta", dtype=dtype)
        self.layers, self.all_heads = layout.config.num_hidden_layers, layout.config.num_attention_heads
        self.first_head, self.width = layout.heads[0], self.all_heads * layout.config.head_dim
        self.group = group

    def forward(self, x: Tensor, packed: Packed, table: Tensor, states: Tensor | MarkedStates | None) -> Tensor:
        if x.dtype == torch.float16:
            out, gate = self._attended(x, packed, states)
            squares = self.group.all_reduce(row_squares(out))
            normed = gated_norm_of(out, gate, self.norm.weight, self.norm.eps, squares, self.width)
            return self.group.all_reduce(self.out_proj(normed))
        tail = tail_columns(self.group.ranks)
        own = partial(self._message, x, packed, states)
        message = self.group.attempt(own, lambda: x.new_zeros(len(x), x.shape[1] + tail))
        return divided(self.group.all_reduce(message), tail, self.width, self.norm.eps)

    def _attended(self, x: Tensor, packed: Packed, states: Tensor | MarkedStates | None) -> tuple[Tensor, Tensor]:
        """What some heads give, and their gate: [T, heads * d] each."""
        projected = project(x, self.qkv_proj, self.output_gate)
        out = attend(next(projected), self.slopes(x.device), packed, states)
        return out, next(projected)

    def _message(self, x: Tensor, packed: Packed, states: Tensor | MarkedStates | None) -> Tensor:
        """[T, hidden] of this rank's heads, not divided yet, and behind it the squares."""
        out, gate = self._attended(x, packed, states)
        part, message = gated_part(out, gate, self.norm.weight, self.group.rank, self.group.ranks, x.shape[1])
        project_to(message[:, : x.shape[1]], part, self.out_proj)
        return message


class SplitMoE(SparseMoE):
    """Some inner units of every expert, or some experts; every rank routes, and the sum over ranks is the output."""

    def __init__(self, layout: Layout, group: Collectives, *, dtype: torch.dtype | None) -> None:
        super().__init__(layout.local, device="meta", dtype=dtype)
        self.group, self.all_experts = group, layout.config.num_local_experts
        self.first, self.stop = layout.experts
        if self.stop - self.first < self.all_experts:
            self.experts.w13 = nn.Parameter(self.experts.w13.detach()[self.first : self.stop])
            self.experts.w2 = nn.Parameter(self.experts.w2.detach()[self.first : self.stop])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, experts, logits = route(x, self.gate.weight, self.top_k)
        own = self.group.attempt(partial(self._own, x, weights, experts), lambda: x)
        return self.group.all_reduce(own), logits

    def _own(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        if self.stop - self.first == self.all_experts:
            return self.experts(x, weights, experts)
        if x.is_cuda and experts.numel() <= _STATIC and not isinstance(self.experts, SpilledExperts):
            return self._all_assignments(x, weights, experts)
        return self._own_assignments(x, weights, experts)

    def _all_assignments(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """Those of other ranks' experts go to experts of this one, with a weight of 0: always the same work."""
        elsewhere = (experts < self.first) | (experts >= self.stop)
        own = torch.where(elsewhere, experts % (self.stop - self.first), experts - self.first)
        return self.experts(x, weights.masked_fill(elsewhere, 0), own)

    def _own_assignments(self, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """Each of this rank's as a token with one expert. The host waits for their number."""
        token, place = ((experts >= self.first) & (experts < self.stop)).nonzero(as_tuple=True)
        out = x.new_zeros(x.shape)
        if len(token):
            own = (experts[token, place] - self.first).unsqueeze(-1)
            out.index_add_(0, token, self.experts(x[token], weights[token, place].unsqueeze(-1), own))
        return out


class Received(nn.Module):
    """In the place of the first input norm of a run of layers, but of the very first: what the rank before normed.

    Attributes:
        due: whether that is yet to come in this pass.
    """

    def __init__(self, group: Collectives) -> None:
        super().__init__()
        self.group, self.due = group, False

    def forward(self, x: Tensor) -> Tensor:
        """x [T, hidden], of which the shape alone is used -> [T, hidden]."""
        self.due = False
        return self.group.receive(self.group.attempt(lambda: torch.empty_like(x), lambda: x), self.group.rank - 1)


class Sent(ResidualNorm):
    """The norm that ends a run of layers. It sends to the rank after, and gives every rank what the last one has.

    Attributes:
        due: whether that is yet to be done in this pass.
    """

    def __init__(self, layout: Layout, group: Collectives, *, dtype: torch.dtype | None) -> None:
        super().__init__(layout.config.hidden_size, layout.config.rms_norm_eps, device="meta", dtype=dtype)
        self.group, self.due = group, False

    def forward(self, x: Tensor, y: Tensor | None = None, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
        return self.passed_on(self.group.attempt(partial(super().forward, x, y, alpha, beta), lambda: x))

    def passed_on(self, out: Tensor) -> Tensor:
        """A run's result, [T, hidden], given to the others; they get the last one's."""
        last, self.due = self.group.ranks - 1, False
        if self.group.rank < last:
            self.group.send(out, self.group.rank + 1)
        return self.group.broadcast(out, last)
