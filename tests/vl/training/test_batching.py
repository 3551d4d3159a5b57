from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vl
from preprocessing import Processor
from vl.training.batch import IGNORE, Batch
from vl.training.batching import Batching, RecordBatches, read_held_out
from vl.training.config import IMAGE_ID, DataConfig
from vl.training.corpus import Corpus
from vl.training.data import load_batches
from vl.training.lengths import measure_records

from .conversations import picture, talk, write_jsonl


@given(
    lengths=st.lists(st.integers(0, 100), min_size=1, max_size=60).filter(any),
    spare=st.integers(0, 200),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_epoch_has_every_record_once_within_the_budget(lengths: list[int], spare: int, seed: int) -> None:
    sizes = np.array(lengths, np.int32)
    plan = Batching(sizes, max(lengths) + spare, seed)
    start = 0
    for epoch in range(3):
        drawn = [plan.batch(number) for number in range(start, plan.end(epoch))]
        assert sorted(np.concatenate(drawn).tolist()) == [i for i, length in enumerate(lengths) if length]
        assert all(0 < sizes[batch].sum() <= plan.budget for batch in drawn)
        for batch, following in pairwise(drawn):
            assert sizes[batch].sum() + sizes[following[0]] > plan.budget, "a batch ends only where it is full"
        start = plan.end(epoch)
    # Asked in any order, by anyone, the answer is the same.
    other = Batching(sizes, plan.budget, seed)
    for number in reversed(range(start)):
        assert np.array_equal(other.batch(number), plan.batch(number))


def test_no_more_epochs_are_drawn_than_there_are_steps() -> None:
    plan = Batching(np.ones(10, np.int32), 4, 0)  # three batches an epoch
    assert [plan.end_within(epochs, 10**9) for epochs in (1, 2, 5)] == [3, 6, 15]
    plan = Batching(np.ones(10, np.int32), 4, 0)
    assert plan.end_within(10**12, 7) == 9
    assert len(plan.ends) == 3


def test_epochs_and_seeds_shuffle_differently() -> None:
    sizes = np.ones(50, np.int32)
    orders = {tuple(Batching(sizes, 50, seed).batch(epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@pytest.fixture
def source(tmp_path: Path, processor: Processor) -> RecordBatches:
    """Ten conversations with pictures of many shapes, one without, one broken behind its header."""
    records = []
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(picture(20 + 9 * i, 90 - 8 * i))
        records.append(talk(f"{i}.png", f"Box {i}."))
    records.append({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]})
    (tmp_path / "cut.png").write_bytes(picture(64, 64)[:-40])
    records.append(talk("cut.png"))
    loaded = Corpus([write_jsonl(tmp_path / "a.jsonl", records)])
    config = DataConfig(seed=3, workers=0, batch_tokens=300)
    lengths = measure_records(loaded, processor, config, tmp_path).lengths
    assert (lengths > 0).all()
    return RecordBatches(config, processor, IMAGE_ID, loaded, Batching(lengths, 300, 3))


def test_batches_are_the_processors_sequences_end_to_end(source: RecordBatches) -> None:
    seen, tiles = 0, set()
    for number in range(source.plan.end(0)):
        batch = source[number, 2]
        broken = {int(skipped.record.rpartition(":")[2]) - 1 for skipped in batch.skipped}
        start = 0
        kept = [int(i) for i in source.plan.batch(number) if i not in broken]
        seen += len(kept) + len(broken)
        assert all("cut.png" in skipped.cause for skipped in batch.skipped)
        if not kept:
            continue  # the next batch took its place
        for i, length in zip(kept, batch.lengths, strict=True):
            inputs, learnt = source.processor.training(source.records.messages(i))
            assert torch.equal(batch.input_ids[start : start + length], inputs.input_ids)
            labels = batch.labels[start : start + length]
            assert labels[labels != IGNORE].tolist() == inputs.input_ids[learnt].tolist()
            tiles.update(grid.tiles for grid in inputs.grids)
            start += length
        assert start == len(batch.input_ids) <= 300
        assert len(batch.image_rows) == sum(grid.tokens for grid in batch.grids)
        assert len(batch.tiles) == sum(grid.tiles for grid in batch.grids)
        assert batch.patch_labels is None
    assert seen == 12
    assert len(tiles) > 1, "tile counts are mixed"


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.input_ids, b.input_ids) and torch.equal(a.tiles, b.tiles) and a.skipped == b.skipped


def test_workers_and_a_later_start_change_nothing(source: RecordBatches) -> None:
    keys = [(number, 2) for number in range(6)]
    alone = list(load_batches(source, keys, pin=False))
    helped = RecordBatches(replace(source.config, workers=2), source.processor, IMAGE_ID, source.records, source.plan)
    assert all(map(same, alone, load_batches(helped, keys, pin=False)))
    assert all(map(same, alone[4:], load_batches(source, keys[4:], pin=False)))


def test_a_batch_of_broken_records_is_replaced(tmp_path: Path, processor: Processor) -> None:
    (tmp_path / "cut.png").write_bytes(picture(64, 64)[:-40])
    (tmp_path / "good.png").write_bytes(picture(64, 64))
    config = DataConfig(workers=0, batch_tokens=250)
    for images, error in ((["cut.png", "good.png"], ""), (["cut.png"], "could be read; .*cut.png")):
        records = Corpus([write_jsonl(tmp_path / "a.jsonl", [talk(image) for image in images])])
        lengths = measure_records(records, processor, config, tmp_path).lengths
        source = RecordBatches(config, processor, IMAGE_ID, records, Batching(lengths, 250, 0))
        if error:
            with pytest.raises(vl.ConfigError, match=error):
                source[0, 2]
            helped = RecordBatches(replace(config, workers=1), processor, IMAGE_ID, records, source.plan)
            with pytest.raises(vl.ConfigError, match=r"^none of the last .* could be read; .*cut\.png"):  # no traceback
                next(load_batches(helped, [(0, 2)], pin=False))
        else:
            assert [len(source[number, 2].lengths) for number in range(4)] == [1] * 4


def test_held_out_records_none_of_which_can_be_read_are_refused(source: RecordBatches) -> None:
    config, lengths = replace(source.config, max_tokens=1), np.ones_like(source.plan.lengths)
    with pytest.raises(vl.ConfigError, match=r"none of the records of data.held_out could be read; .*jsonl:1: "):
        read_held_out(config, source.processor, IMAGE_ID, source.records, lengths)


def test_held_out_records_come_in_order_and_once(source: RecordBatches) -> None:
    plan = source.plan
    packed = read_held_out(source.config, source.processor, IMAGE_ID, source.records, plan.lengths)
    lengths = [length for batch in packed for length in batch.lengths]
    assert lengths == plan.lengths[:-1].tolist()
    assert len(packed) > 2
