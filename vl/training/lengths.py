"""How long every record is, found before training starts, so that packing can be planned and nothing surprises later.

Lengths come from text and image headers alone; no pixels are decoded. What cannot be used is listed with its cause.
The result is kept beside the run and found again as long as the data and the processor are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from preprocessing import Conversation, Processor, image_size
from preprocessing.chat import Messages
from vl.errors import ConfigError, Error, ImageError
from vl.training.batch import Skipped
from vl.training.config import DataConfig
from vl.training.corpus import Corpus
from vl.training.data import count_spare_cpus, start_method

LENGTHS = "lengths.npy"
SKIPPED = "skipped.jsonl"

_CHUNK = 64
_REPORT_SECONDS = 5.0

# One cause of a skipped record, for counting: "image" (cannot be read), "too long", or "messages" (all else).
Cause = str


@dataclass(frozen=True)
class Lengths:
    """`lengths`: int32 [records], tokens of each record, 0 where it cannot be used. `skipped` says which and why."""

    lengths: np.ndarray
    skipped: tuple[Skipped, ...]
    causes: dict[Cause, int]

    def summary(self, folder: Path) -> str:
        """How many records and tokens there are, what is skipped, and that `folder` has the list of it."""
        causes = "".join(f", {count:,} for {cause}" for cause, count in sorted(self.causes.items()))
        where = f" (see {folder / SKIPPED})" if causes else ""
        counts = f"{len(self.lengths):,} records, {int(self.lengths.sum()):,} tokens"
        return f"{counts}; {len(self.skipped):,} skipped{causes}{where}"


def measure_records(
    records: Corpus,
    processor: Processor,
    config: DataConfig,
    folder: Path,
    tell: Callable[[str], None] = print,
) -> Lengths:
    """Measures every record, or finds the measurement that an earlier part of the run left in `folder`.

    Raises:
        ConfigError: if no record can be used; names the first cause.
    """
    key = fingerprint(records, processor, config)
    found = _read(folder, key)
    if found is None:
        found = _measure(records, processor, config, tell)
        _write(folder, key, found)
    if not found.lengths.any():
        first = found.skipped[0]
        raise ConfigError(f"none of the {len(records):,} records can be used; {first.record}: {first.cause}")
    return found


def record_length(messages: Messages, processor: Processor) -> int:
    """Tokens of a conversation with its images, as `Processor.training` would make them. Raises as that does."""
    conversation = Conversation.of(messages)
    tokens = sum(len(ids) for ids, _ in processor.segments(conversation))
    if processor.patcher is None:
        return len(processor.training(messages)[0])  # which refuses images
    grids = [processor.patcher.grid(*image_size(source)) for source in conversation.images]
    return tokens + sum(grid.tokens - 1 for grid in grids)


def fingerprint(records: Corpus, processor: Processor, config: DataConfig) -> str:
    """Changes when a data file, the processor or the length limit does."""
    files = [(str(file.path), os.stat(file.path).st_size, os.stat(file.path).st_mtime_ns) for file in records.files]
    patcher = processor.patcher
    shape = None if patcher is None else (patcher.pinpoints, patcher.tile, patcher.patch)
    text = (processor.template.source, processor.tokenizer.backend.to_str(), processor.control_tokens_in_text)
    parts = (files, text, shape, config.limit)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class _Lengths(Dataset[tuple[int, Cause, str]]):
    """For each record its length, or 0, the kind of cause and the cause."""

    def __init__(self, records: Corpus, processor: Processor, limit: int) -> None:
        self.records, self.processor, self.limit = records, processor, limit

    def __getitem__(self, index: int) -> tuple[int, Cause, str]:
        try:
            length = record_length(self.records.messages(index), self.processor)
        except ImageError as error:
            return 0, "image", str(error)
        except Error as error:
            return 0, "messages", str(error)
        if length > self.limit:
            return 0, "too long", f"{length:,} tokens are more than the limit of {self.limit:,} (data.max_tokens)"
        return length, "", ""

    def __len__(self) -> int:
        return len(self.records)


def _measure(records: Corpus, processor: Processor, config: DataConfig, tell: Callable[[str], None]) -> Lengths:
    workers = count_spare_cpus() if config.workers is None else config.workers
    workers = min(workers, len(records) // _CHUNK)  # a few records are measured before a worker has started
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loader = DataLoader(
        _Lengths(records, processor, config.limit),
        batch_size=_CHUNK,
        collate_fn=list,
        num_workers=workers,
        multiprocessing_context=start_method(workers),
    )
    lengths = np.zeros(len(records), np.int32)
    skipped: list[Skipped] = []
    causes: Counter[Cause] = Counter()
    index, told = 0, time.monotonic()
    for chunk in loader:
        for length, kind, cause in chunk:
            lengths[index] = length
            if not length:
                skipped.append(Skipped(records.name(index), cause))
                causes[kind] += 1
            index += 1
        if time.monotonic() - told > _REPORT_SECONDS:
            told = time.monotonic()
            tell(f"measuring records: {index:,} of {len(records):,}")
    return Lengths(lengths, tuple(skipped), dict(causes))


def _write(folder: Path, key: str, found: Lengths) -> None:
    rows = [{"record": item.record, "cause": item.cause} for item in found.skipped]
    head = {"survey": key, "causes": found.causes, "skipped": len(rows)}
    np.save(folder / LENGTHS, found.lengths)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in (head, *rows))
    partial = folder / f".{SKIPPED}.partial"
    partial.write_text(text, "utf-8", "surrogateescape")
    partial.replace(folder / SKIPPED)


def _read(folder: Path, key: str) -> Lengths | None:
    try:
        with (folder / SKIPPED).open(encoding="utf-8", errors="surrogateescape") as file:
            head = json.loads(file.readline())
            if head["survey"] != key:
                return None
            rows = [json.loads(file.readline()) for _ in range(head["skipped"])]
        lengths = np.load(folder / LENGTHS, allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Lengths(lengths, tuple(Skipped(**row) for row in rows), head["causes"])
