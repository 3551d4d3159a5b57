"""The model that a run leaves, in the released layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vl.model import MiniMaxVL
from vl.training.lora import load_adapter
from vl.training.shards import Shards, local, on_host

# A repository's files may not be large; beyond that size a model is for elsewhere.
_SMALL_SHARD, _LARGE_SHARD, _LARGE_MODEL = 16_000_000, 5_000_000_000, 100_000_000


def whole_weights(learner: nn.Module, prefix: str, shards: Shards, keep: bool) -> dict[str, Tensor]:
    """Parameters of a part of `learner` by their names in it, gathered from all processes; `keep` as in `on_host`."""
    wholes = (
        (name.removeprefix(prefix), shards.gather(name, local(parameter.detach()), parameter.detach()))
        for name, parameter in learner.named_parameters()
        if name.startswith(prefix)
    )
    return on_host(wholes, keep)


def write_model(
    model: MiniMaxVL, folder: Path, weights: Mapping[str, Tensor] | None = None, adapter: Path | None = None
) -> None:
    """Writes `model` in bfloat16.

    Args:
        model: stays as it is.
        folder: gets it, and loses what it had.
        weights: parameters by their names, to write instead of the model's own; needed with `adapter`.
        adapter: a folder with adapters, which are added to the weights.
    """
    if weights is not None:
        model = MiniMaxVL(model.config, model.processor, device="cpu", dtype=torch.bfloat16)
        model.load_state_dict(weights)
    if adapter is not None:
        load_adapter(model, adapter)
    small = sum(2 * parameter.numel() for parameter in model.parameters()) < _LARGE_MODEL
    model.save(folder, max_shard_bytes=_SMALL_SHARD if small else _LARGE_SHARD, dtype=torch.bfloat16)
