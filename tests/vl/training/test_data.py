from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vl.training.data
from preprocessing import Processor
from vl.errors import ConfigError
from vl.nano.mix import Mix
from vl.nano.render import render
from vl.training.batch import IGNORE
from vl.training.config import EVALUATION_SEED, IMAGE_ID, DataConfig, TrainConfig
from vl.training.data import _STRIDE, BatchSource, DrawnBatches, draw_held_out, load_batches, pack
from vl.training.losses import answer_weights, token_loss
from vl.training.made import Made


def test_labels_are_the_assistants_words_and_end(config: TrainConfig, processor: Processor) -> None:
    samples = [render(1, index, Mix.of(config.data.mix)) for index in range(5)]
    batch = pack(samples, processor, IMAGE_ID)
    start = 0
    for sample, length in zip(samples, batch.lengths, strict=True):
        labels = batch.labels[start : start + length]
        learnt = labels[labels != IGNORE].tolist()
        assert processor.tokenizer.decode(learnt, skip_special_tokens=False) == sample.answer + "<end_of_sentence>"
        # A label is the next token of its own sequence.
        ids = batch.input_ids[start : start + length]
        at = (labels != IGNORE).nonzero().flatten()
        assert torch.equal(labels[at], ids[at + 1])
        start += length
    assert start == len(batch.input_ids) == len(batch.labels)
    assert torch.equal(batch.scored, (batch.labels != IGNORE).nonzero().flatten())


def test_packing_keeps_every_sequence_and_image(config: TrainConfig, processor: Processor) -> None:
    samples = [render(1, index, Mix.of(config.data.mix)) for index in range(4)]
    batch = pack(samples, processor, IMAGE_ID)
    alone = [processor.training(sample.messages)[0] for sample in samples]
    assert torch.equal(batch.input_ids, torch.cat([inputs.input_ids for inputs in alone]))
    assert torch.equal(batch.tiles, torch.cat([inputs.tiles for inputs in alone]))
    assert batch.tiles.dtype == torch.uint8
    assert len(batch.image_rows) == sum(grid.tokens for grid in batch.grids)
    assert batch.kinds == tuple(sample.kind for sample in samples)


def test_a_batch_stops_at_its_budget(config: TrainConfig, processor: Processor) -> None:
    batch = DrawnBatches(config.data, processor, IMAGE_ID, config.data.open_source())[0, 2]
    budget = config.data.batch_tokens
    assert len(batch.input_ids) >= budget > len(batch.input_ids) - batch.lengths[-1]


def test_steps_are_reproducible_and_differ(config: TrainConfig, processor: Processor) -> None:
    steps = DrawnBatches(config.data, processor, IMAGE_ID, config.data.open_source())
    assert torch.equal(steps[3, 2].tiles, steps[3, 2].tiles)
    assert not torch.equal(steps[3, 2].input_ids[:200], steps[4, 2].input_ids[:200])


def test_workers_give_the_same_batches_in_order(processor: Processor, config: TrainConfig) -> None:
    keys = [(step, step // 2) for step in range(4)]
    alone = list(
        load_batches(DrawnBatches(config.data, processor, IMAGE_ID, config.data.open_source()), keys, pin=False)
    )
    helped = list(
        load_batches(
            DrawnBatches(replace(config.data, workers=2), processor, IMAGE_ID, config.data.open_source()),
            keys,
            pin=False,
        )
    )
    assert len(alone) == len(helped) == 4
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a.input_ids, b.input_ids)
        assert torch.equal(a.tiles, b.tiles)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="elsewhere it is PyTorch's")
def test_batches_of_workers_take_no_room_in_dev_shm(processor: Processor, config: TrainConfig) -> None:
    data = replace(config.data, reuse=2, workers=1)
    made = load_batches(DrawnBatches(data, processor, IMAGE_ID, data.open_source()), [(0, 2), (1, 2)], pin=False)
    batches = list(made)
    names = {
        line.split(maxsplit=5)[5]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if any(
            int(line.split("-")[0], 16) <= batch.tiles.data_ptr() < int(line.split("-")[1].split()[0], 16)
            for batch in batches
        )
    }
    assert names == {"/memfd:batches (deleted)"}
    assert batches[0].tiles.data_ptr() == batches[1].tiles.data_ptr(), "what they share came once"
    batches[0].labels[0] = 7  # and is their own
    assert batches[1].labels[0] != 7


def test_keys_are_read_as_far_ahead_as_in_all_other_processes(processor: Processor, config: TrainConfig) -> None:
    """Their stage is that of the moment: processes that share batches would have others."""
    data, read, told = replace(config.data, workers=2), list[int](), list[str]()
    keys = ((read.append(number) or number, 2) for number in range(20))  # type: ignore[func-returns-value]
    source = DrawnBatches(data, processor, IMAGE_ID, data.open_source())
    next(load_batches(source, keys, pin=False, tell=told.append, least=lambda count: 0))
    assert (read, told) == ([0, 1], ["batches are made by the process that trains"])


@pytest.mark.parametrize(("gigabytes", "workers"), [(100, 2), (1, 1), (0.001, 1)])
def test_there_are_as_many_workers_as_memory_has_room_for_and_the_log_says_so(
    processor: Processor, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, gigabytes: float, workers: int
) -> None:
    monkeypatch.setattr(vl.training.data, "free", lambda device: int(gigabytes * 1e9))
    assert processor.patcher is not None
    # A batch of a tenth of a GB.
    data = replace(config.data, workers=2, batch_tokens=10**8 // (3 * processor.patcher.patch**2))
    told: list[str] = []
    load_batches(DrawnBatches(data, processor, IMAGE_ID, data.open_source()), [], pin=False, tell=told.append)
    (line,) = told
    assert line.startswith(f"batches are made by {workers} process")
    assert ("memory" in line) == (workers < 2)


def test_workers_cut_images_by_one_thread_each(processor: Processor, config: TrainConfig) -> None:
    class Threads(BatchSource):
        def __getitem__(self, key: tuple[int, int]) -> Any:
            assert self.processor.patcher is not None
            return self.processor.patcher.threads

    assert processor.patcher is not None
    three = replace(processor, patcher=replace(processor.patcher, threads=3))
    for workers, threads in ((0, 3), (1, 1)):
        source = Threads(replace(config.data, workers=workers), three, IMAGE_ID)
        assert list(load_batches(source, [(0, 0)], pin=False)) == [threads]
    assert source.processor is three, "the process that trains keeps its own"


def test_held_out_pictures_come_from_the_evaluation_seeds(config: TrainConfig, processor: Processor) -> None:
    (batch,) = draw_held_out(config.data.open_source(), processor, IMAGE_ID, "scenes", 3)
    expected = pack(
        (render(EVALUATION_SEED, i, Mix.of(config.data.mix).only("scenes")) for i in range(3)), processor, IMAGE_ID
    )
    assert batch.kinds == ("scenes",) * 3
    assert torch.equal(batch.tiles, expected.tiles)


def test_tokens_know_how_long_their_answer_is(config: TrainConfig, processor: Processor) -> None:
    mix = replace(Mix.of(config.data.mix), scenes=1.0, questions=0.9, turns=6)
    samples = [render(1, index, mix) for index in range(12)]
    batch = pack(samples, processor, IMAGE_ID)
    answers = [answer for s in samples for answer in (s.answer, *(turn.answer for turn in s.later))]
    assert len(answers) > 1.5 * len(samples)
    # The tokenizer's own lengths, and one for the end.
    lengths = [len(processor.tokenizer.encode(answer)) + 1 for answer in answers]
    assert batch.answer_lengths.tolist() == [n for n in lengths for _ in range(n)]


def test_reductions_share_the_loss_between_answers() -> None:
    lengths = torch.tensor([2, 2, *[8] * 8])
    logits = torch.randn(10, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(10) % 5
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    short, long = each[:2].mean(), each[2:].mean()
    for reduction, shares in {"token": (0.2, 0.8), "square": (1 / 3, 2 / 3), "sample": (0.5, 0.5)}.items():
        loss = token_loss(logits, labels, answer_weights(lengths, reduction))
        torch.testing.assert_close(loss, shares[0] * short + shares[1] * long)
    torch.testing.assert_close(token_loss(logits, labels), each.mean())


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_are_shown_again_with_other_questions(processor: Processor, config: TrainConfig, workers: int) -> None:
    mix = dict(config.data.mix) | {"scenes": 0.7, "nothing": 0.2, "absent": 0.5, "questions": 0.8, "turns": 3}
    data = replace(config.data, reuse=3, workers=workers, mix=mix)
    keys = [(number, 2) for number in range(6)]
    batches = list(load_batches(DrawnBatches(data, processor, IMAGE_ID, data.open_source()), keys, pin=False))
    drawn = [(replace(data, reuse=1).open_source().draw(1, n * _STRIDE, 2)) for n in range(2)]
    for number, batch in enumerate(batches):
        first = batches[number // 3 * 3]
        assert torch.equal(batch.tiles, first.tiles)
        assert (batch.grids, batch.kinds) == (first.grids, first.kinds)
        assert batch.patch_labels is not None
        assert torch.equal(batch.patch_labels, first.patch_labels)
        assert len(batch.image_rows) == sum(grid.tokens for grid in batch.grids)
        # The first sequence is what is drawn first, and its conversation what is asked of it at this time.
        sample = drawn[number // 3]
        if number % 3:
            sample = data.open_source().ask_again(sample, 1, number // 3 * _STRIDE, number % 3, 2)
        inputs, _ = processor.training(sample.messages)
        assert torch.equal(batch.input_ids[: batch.lengths[0]], inputs.input_ids)
    texts = [tuple(batch.input_ids.tolist()) for batch in batches]
    assert len(set(texts)) == 6
    # A run that is resumed in the middle of the pictures' turns sees the same.
    later = load_batches(DrawnBatches(data, processor, IMAGE_ID, data.open_source()), keys[2:4], pin=False)
    for again, batch in zip(later, batches[2:4], strict=True):
        assert torch.equal(again.input_ids, batch.input_ids)
        assert torch.equal(again.tiles, batch.tiles)


def test_pictures_are_not_shown_again_where_nothing_else_is_asked_of_them() -> None:
    with pytest.raises(ConfigError, match="'recall' makes none"):
        DataConfig(source="recall", reuse=2).open_source()
    with pytest.raises(ConfigError, match=r"data\.files are read"):
        DataConfig(files=("a.jsonl",), reuse=2)
    with pytest.raises(ConfigError, match=r"data\.reuse = 0 must be at least 1"):
        DataConfig(reuse=0)


def test_what_batches_share_is_pinned_once(
    processor: Processor, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = replace(config.data, reuse=2)
    drawn = DrawnBatches(data, processor, IMAGE_ID, data.open_source())
    made = Made([drawn[0, 2], drawn[1, 2]])
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    first, second = made.pin_memory()
    assert first.tiles is second.tiles is not made[0].tiles
    assert torch.equal(first.tiles, made[0].tiles)
    assert torch.equal(second.input_ids, made[1].input_ids)
    # Tiles and what the patches show are those of both; text and all that follows from it is each one's own.
    assert len(pinned) == 3 + 2 * 5
