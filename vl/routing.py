"""Which experts tokens go to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from text_backbone import Packed
from text_backbone.parallel.model import SplitText
from vl.model import MiniMaxVL


@torch.inference_mode()
def last_experts(model: MiniMaxVL, texts: Sequence[Sequence[int]]) -> list[int] | None:
    """How many experts of each layer the last tokens of texts go to, read without a cache.

    Called by all ranks of a model that is split, with the same texts. None if its layers lie on several.

    Args:
        texts: token ids, without images.
    """
    decoder = model.language_model
    if isinstance(decoder, SplitText) and decoder.layout.shares("layers"):
        return None
    ids = torch.tensor([token for text in texts for token in text])
    packed = Packed.of([len(text) for text in texts], device=model.device)
    logits: list[Tensor] = []
    model(ids, torch.empty(0, 3, 1, 1, dtype=torch.uint8), [], packed, router_logits=logits)
    last = torch.tensor([len(text) for text in texts]).cumsum(0).sub(1).to(model.device)
    each = decoder.config.num_experts_per_tok
    return [len(rows[last].topk(each, dim=-1).indices.unique()) for rows in logits]
