"""One pass over a packed batch: hidden states, losses, and what is counted right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.attention import SDPBackend, sdpa_kernel

from vl.model import MiniMaxVL
from vl.training.batch import Batch
from vl.training.context import Context
from vl.training.dense import PatchHead, captured_features, dense_loss
from vl.training.lora import Adapters
from vl.training.losses import answer_weights, balance_loss, token_loss

# Not cuDNN, though it is the fastest: it takes tens of milliseconds to plan for each new shape, and no two batches
# are alike.
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class StepLosses(NamedTuple):
    """Scalars [] on the device, and the experts' load [layers, E]. A tuple, as FSDP looks for tensors in outputs."""

    total: Tensor
    tokens: Tensor
    balance: Tensor
    dense: Tensor
    load: Tensor


def scored_logits(
    model: MiniMaxVL, batch: Batch, *, max_tiles: int, router_logits: list[Tensor] | None = None
) -> Tensor:
    """float32 [m, vocab]: the logits at the batch's scored positions.

    Image features are put at rows that the batch knows, where `MiniMaxVL.embed` finds them by a mask: its backward
    pass would make the host wait for the device. Logits at image tokens, most of the batch, are never made.
    """
    with sdpa_kernel(_ATTENTION):
        embeds = model.language_model.embed(batch.input_ids)
        if model.vision is not None:
            features = model.vision(batch.tiles, batch.grids, max_tiles=max_tiles)
            if batch.features is not None:
                features = features.index_select(0, batch.features)
            embeds = embeds.index_copy(0, batch.image_rows, features.to(embeds.dtype))
        if torch.is_grad_enabled() and not embeds.requires_grad:
            # Nothing before the decoder learns from this batch. But from others' it may, and processes wait for each
            # other in the backward pass of every layer.
            embeds.requires_grad_()
        hidden = model.language_model(embeds, batch.packed(embeds.device), None, router_logits)  # [T, hidden]
        return model.language_model.logits(hidden.index_select(0, batch.scored))


class Learner(nn.Module):
    """All that learns: the model, and where a run has them the head of dense supervision and adapters.

    Args:
        model: with or without a vision encoder.
        head: makes patch classes of the ViT's features; its batches must have `patch_labels`.
        adapters: in effect through the model's own layers; they are here as their parameters belong to the run.

    Attributes:
        context: the processes among which this one has a part of each batch.
    """

    def __init__(self, model: MiniMaxVL, head: PatchHead | None = None, adapters: Adapters | None = None) -> None:
        super().__init__()
        self.model, self.head, self.adapters = model, head, adapters
        self.context = Context()

    def forward(
        self,
        batch: Batch,
        *,
        balance: float,
        dense: float,
        max_tiles: int,
        reduction: str = "token",
        token_share: float = 1.0,
        batch_share: float = 1.0,
    ) -> StepLosses:
        """The loss to descend: mean cross-entropy of the scored tokens, plus the weighted balance and dense losses.

        Of a part of a batch, the mean over the parts is the loss of the whole batch, but that of the tokens, whose mean
        is over those of the part.

        Args:
            batch: on the model's device.
            balance, dense, reduction, max_tiles: as in `OptimizerConfig` and `RunConfig`.
            token_share, batch_share: of a step with several batches, this one's share of the scored tokens' weight and
                of the batches; every loss is multiplied by the one that fits, so that the step's are their sums.
        """
        routers: list[Tensor] = []
        if self.head is None or self.model.vision is None or batch.patch_points is None:
            logits = scored_logits(self.model, batch, max_tiles=max_tiles, router_logits=routers)
            patches = logits.new_zeros(())
        else:
            with captured_features(self.model.vision) as features:
                logits = scored_logits(self.model, batch, max_tiles=max_tiles, router_logits=routers)
            assert batch.patch_labels is not None
            patches = dense_loss(self.head(torch.cat(features)), batch.patch_points, batch.patch_labels)
        weights = answer_weights(batch.answer_lengths, reduction)
        tokens = token_loss(logits, batch.labels.index_select(0, batch.scored), weights)
        even, load = balance_loss(
            routers,
            self.model.config.text.num_experts_per_tok,
            sum(batch.lengths),
            partial(self.context.sum, part=batch),
        )
        even = even * batch.part[1]
        if (token_share, batch_share) != (1.0, 1.0):
            tokens, even, patches, load = (
                tokens * token_share,
                even * batch_share,
                patches * batch_share,
                load * batch_share,
            )
        total = tokens + balance * even + dense * patches
        if isinstance(self, FSDPModule):
            total = total + self._no_gradient(batch)
        return StepLosses(total, tokens, even, patches, load)

    def scored_logits(self, batch: Batch, *, max_tiles: int) -> Tensor:
        """float32 [m, vocab]: the logits at the batch's scored positions."""
        return scored_logits(self.model, batch, max_tiles=max_tiles)

    def _no_gradient(self, batch: Batch) -> Tensor:
        """0, with a gradient of 0 for what a batch without images has no use of.

        Those are the vision encoder, the adapters, some of which are the projector's, and the head of dense
        supervision. They would have no gradient, and processes must all reduce the same gradients.
        """
        dense = self.head if batch.patch_points is None else None
        unused = [dense] if batch.grids else [dense, self.model.vision, self.adapters]
        learnt = [p.sum() for part in unused if part is not None for p in part.parameters() if p.requires_grad]
        return 0.0 * torch.stack(learnt).sum() if learnt else torch.zeros((), device=self.model.device)


def add_losses(parts: Sequence[StepLosses]) -> StepLosses:
    """The losses of a step from those of its batches, each multiplied by its share."""
    if len(parts) == 1:
        return parts[0]
    return StepLosses(*(torch.stack(values).detach().sum(0) for values in zip(*parts, strict=True)))


@torch.no_grad()
def score(learner: Learner, batches: Sequence[Batch], device: torch.device, *, max_tiles: int) -> dict[str, float]:
    """Held-out figures of teacher-forced predictions.

    `loss` and `accuracy` are means over tokens. `exact` is the share of sequences whose every token is the most
    likely one, which is the share that greedy decoding reproduces to the letter.
    """
    context = learner.context
    loss = right = tokens = exact = sequences = 0.0
    for batch in batches:
        part = context.share(batch)
        on_device = part.to(device)
        logits = learner.scored_logits(on_device, max_tiles=max_tiles)
        labels = on_device.labels.index_select(0, on_device.scored)
        nats = F.cross_entropy(logits, labels, reduction="none")
        missed = logits.argmax(-1) != labels
        by_sequence = torch.zeros(len(batch.lengths), device=device)
        by_sequence.index_add_(0, on_device.sequences(), missed.float())
        figures = context.sum(torch.cat((nats.sum()[None], by_sequence)), part)
        own, *misses = figures.tolist()
        loss += own
        right += len(batch.scored) - sum(misses)
        tokens += len(batch.scored)
        exact += misses.count(0)
        sequences += len(batch.lengths)
    return {"loss": loss / tokens, "accuracy": right / tokens, "exact": exact / sequences}
