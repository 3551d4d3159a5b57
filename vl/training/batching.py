"""Batches of the user's records: which records are in which batch follows from their lengths and the seed alone."""

from __future__ import annotations

from itertools import count

import numpy as np

from preprocessing import Processor
from vl.errors import ConfigError, Error, InputError
from vl.training.batch import Batch, Encoded, Skipped, encode, join
from vl.training.config import DataConfig
from vl.training.corpus import Corpus
from vl.training.data import BatchSource, Key

# Batches in a row of which not one record can be read, until the data is given up.
_GIVE_UP = 64


class Batching:
    """The batches of every epoch, one epoch after the other without end.

    Each epoch has every usable record once, in an order drawn from (seed, epoch), and cuts it into batches of at most
    `budget` tokens. So batch n is the same whoever asks: workers, processes and resumed runs need no common state.

    Args:
        lengths: int32 [records]; 0 is never drawn.
        budget: tokens, at least the longest record's.
    """

    def __init__(self, lengths: np.ndarray, budget: int, seed: int) -> None:
        self.lengths, self.budget, self.seed = lengths, budget, seed
        self.usable = np.flatnonzero(lengths)
        self.ends: list[int] = []  # batches of all epochs up to each
        self._drawn: tuple[int, np.ndarray, list[int]] = (-1, self.usable, [])

    def batch(self, number: int) -> np.ndarray:
        """int64 [records], the records of batch `number`."""
        epoch = next(epoch for epoch in count() if number < self.end(epoch))
        order, cuts = self._epoch(epoch)
        inside = number - (self.end(epoch - 1) if epoch else 0)
        return order[cuts[inside] : cuts[inside + 1]]

    def end(self, epoch: int) -> int:
        """Batches of the epochs 0 to `epoch`."""
        while len(self.ends) <= epoch:
            self.ends.append((self.ends[-1] if self.ends else 0) + len(self._epoch(len(self.ends))[1]) - 1)
        return self.ends[epoch]

    def end_within(self, epochs: int, most: int) -> int:
        """Batches of so many epochs, or of the first few of them that have `most`: no epoch after that is drawn."""
        last = 0
        while last < epochs - 1 and self.end(last) < most:
            last += 1
        return self.end(last)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, list[int]]:
        """The order of an epoch's records, and where it is cut; the last epoch asked for is remembered."""
        if self._drawn[0] == epoch:
            return self._drawn[1:]
        order = np.random.default_rng((self.seed, epoch)).permutation(self.usable)
        total = np.cumsum(self.lengths[order], dtype=np.int64)
        cuts = [0]
        while cuts[-1] < len(order):
            before = int(total[cuts[-1] - 1]) if cuts[-1] else 0
            cuts.append(int(np.searchsorted(total, before + self.budget, side="right")))
        self._drawn = (epoch, order, cuts)
        return order, cuts


class RecordBatches(BatchSource):
    """The batches of a plan, read and preprocessed; the stage of a key has no meaning here."""

    def __init__(
        self, config: DataConfig, processor: Processor, image_token: int | None, records: Corpus, plan: Batching
    ) -> None:
        super().__init__(config, processor, image_token)
        self.records, self.plan = records, plan

    def __getitem__(self, key: Key) -> Batch:
        """Batch `key[0]` of the plan, without the records that turn out to be unreadable.

        If none is left of a batch, the next one's records take their place. Raises ConfigError if that fails too often.
        """
        skipped: list[Skipped] = []
        for number in range(key[0], key[0] + _GIVE_UP):
            if sequences := read(self.records, self.plan.batch(number), self.processor, self.config.limit, skipped):
                return join(sequences, self.image_token, skipped)
        raise ConfigError(
            f"none of the last {len(skipped):,} records could be read; {skipped[-1].record}: {skipped[-1].cause}"
        )


def read(
    records: Corpus, numbers: np.ndarray, processor: Processor, limit: int, skipped: list[Skipped]
) -> list[Encoded]:
    """The records of these numbers as sequences; those that cannot be read go to `skipped`."""
    sequences = []
    for number in map(int, numbers):
        try:
            sequence = encode(records.messages(number), processor, "records")
            if len(sequence) > limit:
                raise InputError(f"{len(sequence):,} tokens, more than when the run began: the file has changed")
            sequences.append(sequence)
        except Error as error:
            skipped.append(Skipped(records.name(number), str(error)))
    return sequences


def read_held_out(
    config: DataConfig, processor: Processor, image_token: int | None, records: Corpus, lengths: np.ndarray
) -> list[Batch]:
    """Every usable record once, in the files' order, in batches of about the training's size.

    Raises ConfigError if none of them can be read after all.
    """
    usable = np.flatnonzero(lengths)
    parts = np.cumsum(lengths[usable], dtype=np.int64) // config.batch_tokens
    groups = np.split(usable, np.flatnonzero(np.diff(parts)) + 1)
    skipped: list[Skipped] = []
    sequences = (read(records, group, processor, config.limit, skipped) for group in groups)
    batches = [join(group, image_token) for group in sequences if group]
    if not batches:
        raise ConfigError(
            f"none of the records of data.held_out could be read; {skipped[0].record}: {skipped[0].cause}"
        )
    return batches
