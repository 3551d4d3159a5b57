"""Where batches come from: sources that make their data on the way, and workers that prepare any batches ahead."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, count, groupby, islice
from multiprocessing import get_all_start_methods
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from preprocessing import Grid, Processor, load_image
from preprocessing.chat import Conversation
from preprocessing.container import available_cpus
from preprocessing.lazy import LazyImage
from preprocessing.sources import ImageSource
from vl.engine.memory import HOST, free
from vl.errors import Error
from vl.training.batch import Batch, encode, join
from vl.training.config import DataConfig
from vl.training.made import Made
from vl.training.source import DataSource, Sample

# Samples that a batch may draw; batches get disjoint ranges of the stream, so any one can be rendered on its own.
_STRIDE = 1 << 20
_AHEAD = 3
_OWN = 2  # batches for which a worker has memory besides: it draws one, and lays the same end to end
_USABLE = 0.5  # of the host's free memory

Key = tuple[int, int]
"""(number of the batch in the whole run, over all processes; stage of `DataConfig.stage`)."""


class BatchSource(Dataset[Batch]):
    """Batches by `Key`, each a function of its key and the config alone: a resumed run sees the same data."""

    def __init__(self, config: DataConfig, processor: Processor, image_token: int | None) -> None:
        self.config, self.processor, self.image_token = config, processor, image_token

    def __getitem__(self, key: Key) -> Batch:
        raise NotImplementedError


class DrawnBatches(BatchSource):
    """Samples of a data source, made on demand, without end; every batch has samples of its own.

    With `config.reuse`, so many batches in a row have the same images, of which the last drawn are kept: batches that
    are asked for in another order, or by several processes, are the same, but are drawn anew.
    """

    def __init__(self, config: DataConfig, processor: Processor, image_token: int | None, source: DataSource) -> None:
        super().__init__(config, processor, image_token)
        self.source = source
        self._kept: tuple[Key, list[Sample], Batch] | None = None  # what was drawn last

    def __getitem__(self, key: Key) -> Batch:
        number, stage = key
        drawn, time = divmod(number, self.config.reuse)
        if self._kept is None or self._kept[0] != (drawn, stage):
            self._kept = None  # its memory is free while others are drawn
            samples: list[Sample] = []
            batch = pack(self._draw(drawn, stage, samples), self.processor, self.image_token, self.config.batch_tokens)
            self._kept = ((drawn, stage), samples, batch) if self.config.reuse > 1 else None
        else:
            _, samples, batch = self._kept
        return self._ask_again(samples, batch, drawn, time, stage) if time else batch

    def _draw(self, drawn: int, stage: int, samples: list[Sample]) -> Iterator[Sample]:
        """The samples of a batch, which are also added to `samples`."""
        for index in count(drawn * _STRIDE):
            samples.append(self.source.draw(self.config.seed, index, stage))
            yield samples[-1]

    def _ask_again(self, samples: list[Sample], batch: Batch, drawn: int, time: int, stage: int) -> Batch:
        """A batch of other conversations about the images of these samples, as they were packed."""
        source: Any = self.source
        sequences, grids = [], iter(batch.grids)
        for index, sample in enumerate(samples, drawn * _STRIDE):
            talk = Conversation.of(source.ask_again(sample, self.config.seed, index, time, stage).messages)
            shown: list[ImageSource] = [_Shown(image, next(grids)) for image in talk.images]
            sequences.append(encode(replace(talk, images=shown), self.processor, sample.kind))
        return join(sequences, self.image_token, shown=batch)


class _Shown(LazyImage):
    """An image whose tiles are there already: the text around it is all that is wanted."""

    def __init__(self, image: ImageSource, grid: Grid) -> None:
        self.image, self.size = image, (grid.width, grid.height)

    def make(self) -> Image.Image:
        return load_image(self.image)


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


def load_batches(
    source: BatchSource,
    keys: Iterable[Key],
    *,
    pin: bool,
    tell: Callable[[str], None] = lambda text: None,
    least: Callable[[int], int] = lambda count: count,
) -> Iterator[Batch]:
    """The batches of `keys` in order, made ahead by worker processes; `keys` is read as far ahead as they are.

    Those of the same images are made by the same worker. `tell` gets a line on how many workers there are. `least`
    gives the least of a number over all processes of a run: what keys are may depend on when they are read, so that
    processes that share batches have to read them as far ahead.
    """
    workers, ahead, why = _prefetch(source.config, source.processor)
    workers, ahead = least(workers), least(ahead)
    tell(f"batches are made by {_counted(workers)}{why}")
    # The tokenizer's own threads do not survive the fork into workers, and it warns unless told so before.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tasks = groupby(keys, lambda key: key[0] // source.config.reuse)
    loader = DataLoader(
        _Tasks(source),
        sampler=(list(task) for _, task in tasks),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        pin_memory=pin,
        worker_init_fn=give_way,
        multiprocessing_context=start_method(workers),
    )
    return chain.from_iterable(map(_sound, loader))


def _sound(made: Made | Error) -> Made:
    if isinstance(made, Error):
        raise made
    return made


class _Tasks(Dataset[Made | Error]):
    """What a worker makes at a time: the batches of some keys, or an error of ours.

    That is handed over, as the data loader would raise another one, with the worker's traceback for its message.
    """

    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def __getitem__(self, keys: list[Key]) -> Made | Error:
        try:
            return Made(self.source[key] for key in keys)
        except Error as error:
            return error


def start_method(workers: int) -> str | None:
    """Forked workers start at once and share what is loaded; others would need a processor that can be pickled."""
    return "fork" if workers and "fork" in get_all_start_methods() else None


def give_way(worker: int) -> None:
    """Lets the training process have a CPU whenever it wants one: the GPU waits for it.

    Images are cut by one thread of each worker, as there are about as many workers as CPUs.
    """
    if hasattr(os, "nice"):
        os.nice(10)
    gc.freeze()  # what was loaded before the fork is not gone through for garbage, nor copied for that
    info = get_worker_info()
    assert info is not None
    assert isinstance(info.dataset, _Tasks)
    source = info.dataset.source
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
    return max(1, available_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)


def _counted(workers: int) -> str:
    if not workers:
        return "the process that trains"
    return "1 process of its own" if workers == 1 else f"{workers} processes of their own"


def _prefetch(config: DataConfig, processor: Processor) -> tuple[int, int, str]:
    """Worker processes and the batches each prepares ahead, as many as there is memory for; and why not more."""
    wanted = count_spare_cpus() if config.workers is None else config.workers
    available = free(HOST)
    if not wanted or available is None or processor.patcher is None:
        return wanted, _AHEAD, ""
    # A tile makes about as many tokens as it has patches, which have three bytes a pixel.
    batch_bytes = config.batch_tokens * 3 * processor.patcher.patch**2
    # Where several processes train, each has its share.
    room = int(_USABLE * available / int(os.environ.get("LOCAL_WORLD_SIZE", "1")) / batch_bytes)
    workers = min(wanted, max(1, room // (_OWN + 1)))
    why = (
        ""
        if workers == wanted
        else (
            f" and not by {wanted}: {available / 1e9:.0f} GB of memory are free, and a batch of data.batch_tokens = "
            f"{config.batch_tokens} takes {batch_bytes / 1e9:.2g} GB"
        )
    )
    return workers, max(1, min(_AHEAD, room // workers - _OWN)), why
