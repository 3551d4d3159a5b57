"""One pass over a packed batch: hidden states, losses, and what is counted right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from text_backbone import Packed
from vision_encoder import VisionEncoder
from vl.errors import ConfigError
from vl.model import MiniMaxVL
from vl.training.data import Batch
from vl.training.dense import PatchHead, captured_features, dense_loss
from vl.training.losses import balance_loss, token_loss

# Not cuDNN, though it is the fastest: it takes tens of milliseconds to plan for each new shape, and no two batches
# are alike.
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class StepLosses:
    """Scalars [] on the device, and the experts' load [layers, E]."""

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
        features = vision_of(model)(batch.tiles, batch.grids, max_tiles=max_tiles)
        embeds = embeds.index_copy(0, batch.image_rows, features.to(embeds.dtype))
        packed = Packed.of(batch.lengths, device=embeds.device)
        hidden = model.language_model(embeds, packed, None, router_logits)  # [T, hidden]
        return model.language_model.logits(hidden.index_select(0, batch.scored))


def vision_of(model: MiniMaxVL) -> VisionEncoder:
    """The model's vision encoder. Raises ConfigError if it has none."""
    if model.vision is None:
        raise ConfigError(
            "a model without a vision encoder cannot learn from pictures: give the config a [vision] table"
        )
    return model.vision


def losses(
    model: MiniMaxVL, head: PatchHead, batch: Batch, *, balance: float, dense: float, max_tiles: int
) -> StepLosses:
    """The loss to descend: mean cross-entropy of the scored tokens, plus the weighted balance and dense losses."""
    routers: list[Tensor] = []
    with captured_features(vision_of(model)) as features:
        logits = scored_logits(model, batch, max_tiles=max_tiles, router_logits=routers)
    tokens = token_loss(logits, batch.labels.index_select(0, batch.scored))
    even, load = balance_loss(routers, model.config.text.num_experts_per_tok)
    patches = dense_loss(head(torch.cat(features)), batch.patch_labels)
    return StepLosses(tokens + balance * even + dense * patches, tokens, even, patches, load)


@torch.no_grad()
def score(model: MiniMaxVL, batches: list[Batch], *, max_tiles: int) -> dict[str, float]:
    """Held-out figures of teacher-forced predictions.

    `loss` and `accuracy` are means over tokens. `exact` is the share of sequences whose every token is the most
    likely one, which is the share that greedy decoding reproduces to the letter.
    """
    loss = right = tokens = exact = sequences = 0.0
    for batch in batches:
        on_device = batch.to(model.device)
        logits = scored_logits(model, on_device, max_tiles=max_tiles)
        labels = on_device.labels.index_select(0, on_device.scored)
        loss += float(token_loss(logits, labels)) * len(labels)
        hits = logits.argmax(-1) == labels
        right += float(hits.sum())
        tokens += len(labels)
        ids = torch.repeat_interleave(torch.arange(len(batch.lengths)), torch.tensor(batch.lengths))  # [T]
        misses = torch.zeros(len(batch.lengths)).index_add_(0, ids[batch.scored], (~hits).float().cpu())
        exact += float((misses == 0).sum())
        sequences += len(batch.lengths)
    return {"loss": loss / tokens, "accuracy": right / tokens, "exact": exact / sequences}
