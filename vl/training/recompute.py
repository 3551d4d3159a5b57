"""Activation checkpointing: layers keep their inputs alone, and run again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from vl.model import MiniMaxVL


def recompute_layers(model: MiniMaxVL) -> None:
    """Checkpoints every decoder layer and every ViT block of `model`, in place; parameter names do not change."""
    for layer in layers_of(model):
        # The layers draw no random numbers: there is no dropout in this family.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def layers_of(model: MiniMaxVL) -> Iterator[nn.Module]:
    """The decoder's layers and the ViT's blocks."""
    yield from model.language_model.layers
    if model.vision is not None:
        vit: Any = model.vision.vit
        yield from vit.blocks
