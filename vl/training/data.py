"""Where batches come from: sources that make their data on the way, and workers that prepare any batches ahead."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count, islice
from multiprocessing import get_all_start_methods

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from preprocessing import Processor
from vl.training.batch import Batch, encode, join
from vl.training.config import DataConfig
from vl.training.source import DataSource, Sample

# Samples that a batch may draw; batches get disjoint ranges of the stream, so any one can be rendered on its own.
_STRIDE = 1 << 20
_AHEAD = 3
_SHARED_MEMORY = "/dev/shm"

Key = tuple[int, int]
"""(number of the batch in the whole run, over all processes; stage of `DataConfig.stage`)."""


class BatchSource(Dataset[Batch]):
    """Batches by `Key`, each a function of its key and the config alone: a resumed run sees the same data."""

    def __init__(self, config: DataConfig, processor: Processor, image_token: int | None) -> None:
        self.config, self.processor, self.image_token = config, processor, image_token

    def __getitem__(self, key: Key) -> Batch:
        raise NotImplementedError


class DrawnBatches(BatchSource):
    """Samples of a data source, made on demand, without end; every batch has samples of its own."""

    def __init__(self, config: DataConfig, processor: Processor, image_token: int | None, source: DataSource) -> None:
        super().__init__(config, processor, image_token)
        self.source = source

    def __getitem__(self, key: Key) -> Batch:
        number, stage = key
        samples = (self.source.draw(self.config.seed, number * _STRIDE + i, stage) for i in count())
        return pack(samples, self.processor, self.image_token, self.config.batch_tokens)


def pack(
    samples: Iterable[Sample], processor: Processor, image_token: int | None, budget: float = float("inf")
) -> Batch:
    """Packs samples, as they come, until there are at least `budget` tokens or no more samples."""
    sequences = []
    total = 0
    for sample in samples:
        sequence = encode(sample.messages, processor, sample.kind)
        if grids := sequence.inputs.grids:
            sequence = replace(sequence, patch_labels=torch.cat([sample.label(grid) for grid in grids]))
        sequences.append(sequence)
        total += len(sequence)
        if total >= budget:
            break
    return join(sequences, image_token)


def load_batches(source: BatchSource, keys: Iterable[Key], *, pin: bool) -> Iterator[Batch]:
    """The batches of `keys` in order, made ahead by worker processes; `keys` is read as far ahead as they are."""
    workers, ahead = _prefetch(source.config, source.processor)
    # The tokenizer's own threads do not survive the fork into workers, and it warns unless told so before.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loader = DataLoader(
        source,
        sampler=keys,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        pin_memory=pin,
        worker_init_fn=give_way,
        multiprocessing_context=start_method(workers),
    )
    return iter(loader)


def start_method(workers: int) -> str | None:
    """Forked workers start at once and share what is loaded; others would need a processor that can be pickled."""
    return "fork" if workers and "fork" in get_all_start_methods() else None


def give_way(worker: int) -> None:
    """Lets the training process have a CPU whenever it wants one: the GPU waits for it.

    Images are cut by one thread of each worker, as there are about as many workers as CPUs.
    """
    if hasattr(os, "nice"):
        os.nice(10)
    info = get_worker_info()
    assert info is not None
    source = info.dataset
    assert isinstance(source, BatchSource)
    if (patcher := source.processor.patcher) is not None:
        source.processor = replace(source.processor, patcher=replace(patcher, threads=1))


def draw_held_out(
    source: DataSource, processor: Processor, image_token: int | None, kind: str, samples: int
) -> list[Batch]:
    """`samples` held-out samples of one kind, packed like training batches."""
    stream = (source.draw_held_out(kind, index) for index in range(samples))
    groups = (tuple(islice(stream, 64)) for _ in range(0, samples, 64))
    return [pack(group, processor, image_token) for group in groups]


def count_spare_cpus() -> int:
    """CPUs for each training process of this host, less one for its loop; at least 1."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return max(1, available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)


def _prefetch(config: DataConfig, processor: Processor) -> tuple[int, int]:
    """Worker processes and the batches each prepares ahead, as many as shared memory has room for."""
    workers = count_spare_cpus() if config.workers is None else config.workers
    if not os.path.isdir(_SHARED_MEMORY) or processor.patcher is None:
        return workers, _AHEAD
    side, patch = processor.patcher.tile, processor.patcher.patch
    # A tile makes about as many tokens as it has patches.
    batch_bytes = config.batch_tokens * 3 * side**2 // (side // patch) ** 2
    room = int(0.7 * shutil.disk_usage(_SHARED_MEMORY).free / batch_bytes)
    workers = min(workers, max(1, room))
    return workers, max(1, min(_AHEAD, room // max(1, workers)))
