"""Rendered samples as packed batches, prepared ahead by worker processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from preprocessing import Grid, Processor
from vl.training.config import DataConfig
from vl.training.dense import patch_labels
from vl.training.render import EVALUATION_SEED, Sample, render

IGNORE = -100
# Samples that a step may draw; steps get disjoint ranges of the stream, so any step can be rendered on its own.
_STRIDE = 1 << 20
_AHEAD = 3
_SHARED_MEMORY = "/dev/shm"


@dataclass(frozen=True)
class Batch:
    """Packed sequences: T tokens end to end, no padding.

    Attributes:
        input_ids: int64 [T].
        labels: int64 [T], the token that has to follow each position, or -100 where none is learnt: everything but
            the assistant's text and its end token.
        scored: int64 [m], the positions with a label, so that logits are made for these alone.
        image_rows: int64 [image tokens], the positions of image tokens.
        tiles: uint8 [n, 3, S, S].
        patch_labels: int64 [n, patches**2], what each patch of each tile shows; see `vl.training.dense`.
        grids: one per image.
        lengths: tokens of each sequence.
        kinds: "scenes" or "words" for each sequence.
    """

    input_ids: Tensor
    labels: Tensor
    scored: Tensor
    image_rows: Tensor
    tiles: Tensor
    patch_labels: Tensor
    grids: tuple[Grid, ...]
    lengths: tuple[int, ...]
    kinds: tuple[str, ...]

    def pin_memory(self) -> Batch:
        return self._map(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """A copy on `device`; asynchronous from pinned memory."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, function: Any) -> Batch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: function(tensor) for name, tensor in tensors.items()})


def pack(samples: Iterable[Sample], processor: Processor, image_token: int, budget: float = float("inf")) -> Batch:
    """Packs samples, as they come, until there are at least `budget` tokens or no more samples."""
    ids, labels, shown, grids, lengths, kinds = [], [], [], [], [], []
    tiles: list[Tensor] = []  # uint8 [3, S, S] each
    total = 0
    for sample in samples:
        inputs, learnt = processor.training(sample.messages)
        # Position t predicts token t + 1.
        following = torch.where(learnt, inputs.input_ids, IGNORE)[1:]
        ids.append(inputs.input_ids)
        labels.append(torch.cat((following, following.new_tensor([IGNORE]))))
        tiles.extend(inputs.tiles)
        shown += [patch_labels(sample.facts, grid) for grid in inputs.grids]
        grids.extend(inputs.grids)
        lengths.append(len(inputs.input_ids))
        kinds.append(sample.kind)
        total += lengths[-1]
        if total >= budget:
            break
    packed, targets = torch.cat(ids), torch.cat(labels)
    return Batch(
        input_ids=packed,
        labels=targets,
        scored=(targets != IGNORE).nonzero().flatten(),
        image_rows=(packed == image_token).nonzero().flatten(),
        # In a worker this writes straight to the memory that the training process shares.
        tiles=default_collate(tiles),
        patch_labels=torch.cat(shown),
        grids=tuple(grids),
        lengths=tuple(lengths),
        kinds=tuple(kinds),
    )


class RenderedSteps(Dataset[Batch]):
    """The batch of (step, stage), a function of that and of the seed alone: a resumed run sees the same data."""

    def __init__(self, config: DataConfig, processor: Processor, image_token: int) -> None:
        self.config, self.processor, self.image_token = config, processor, image_token

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        step, stage = key
        mix = self.config.mix_of(stage)
        samples = (render(self.config.seed, step * _STRIDE + i, mix) for i in count())
        return pack(samples, self.processor, self.image_token, self.config.batch_tokens)


def batches(
    config: DataConfig, processor: Processor, image_token: int, keys: Iterable[tuple[int, int]], *, pin: bool
) -> Iterator[Batch]:
    """The batches of `keys` in order, rendered ahead by worker processes; `keys` is read as far ahead as they are."""
    workers, ahead = _prefetch(config, processor)
    # The tokenizer's own threads do not survive the fork into workers, and it warns unless told so before.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loader = DataLoader(
        RenderedSteps(config, processor, image_token),
        sampler=keys,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        pin_memory=pin,
        worker_init_fn=_give_way,
    )
    return iter(loader)


def _give_way(worker: int) -> None:
    """Lets the training process have a CPU whenever it wants one: the GPU waits for it."""
    if hasattr(os, "nice"):
        os.nice(10)


def held_out(config: DataConfig, processor: Processor, image_token: int, kind: str, samples: int) -> list[Batch]:
    """`samples` pictures of one kind from the evaluation seeds, packed like training batches."""
    mix = config.mix.only(kind)
    stream = (render(EVALUATION_SEED, index, mix) for index in range(samples))
    groups = (tuple(islice(stream, 64)) for _ in range(0, samples, 64))
    return [pack(group, processor, image_token) for group in groups]


def spare_cpus() -> int:
    """CPUs that this process may use, less one for the training loop; at least 1."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return max(1, available - 1)


def _prefetch(config: DataConfig, processor: Processor) -> tuple[int, int]:
    """Worker processes and the batches each prepares ahead, as many as shared memory has room for."""
    workers = spare_cpus() if config.workers is None else config.workers
    if not os.path.isdir(_SHARED_MEMORY) or processor.patcher is None:
        return workers, _AHEAD
    side, patch = processor.patcher.tile, processor.patcher.patch
    # A tile makes about as many tokens as it has patches.
    batch_bytes = config.batch_tokens * 3 * side**2 // (side // patch) ** 2
    room = int(0.7 * shutil.disk_usage(_SHARED_MEMORY).free / batch_bytes)
    workers = min(workers, max(1, room))
    return workers, max(1, min(_AHEAD, room // max(1, workers)))
