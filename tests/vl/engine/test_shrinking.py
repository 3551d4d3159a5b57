"""Memory that runs out, whenever and wherever: less is done at once, each request ends, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import vl
from vl.engine import Engine, Request
from vl.engine.prefix import Prefixes
from vl.engine.scheduler import LEAST, Entry, Scheduler

PICTURE = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
SAMPLING: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.9, "seed": 5}


def conversation(kind: int) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": PICTURE}] if kind == 2 else []
    text = ["Hello", "Describe it in detail, and then count what there is. " * 3, "What is it?"][kind]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


class Short(TorchDispatchMode):
    """Operations of these numbers find no memory."""

    def __init__(self, fails: set[int]) -> None:
        super().__init__()
        self.fails, self.count, self.failed = fails, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count in self.fails:
            self.failed += 1
            raise torch.OutOfMemoryError("out of memory: a test's")
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> vl.MiniMaxVL:
    return vl.load(
        tiny_checkpoint, device="cpu", dtype="float32", page_size=8, cache_tokens=1500, prefill_tokens=128,
        max_batch_size=3, warm_up=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(tiny_checkpoint: Path) -> Callable[[int], list[int]]:
    plain = vl.load(tiny_checkpoint, device="cpu", dtype="float32", prefix_memory=0, image_memory=0, max_batch_size=1)

    @cache
    def answer(kind: int) -> list[int]:
        return plain.generate([conversation(kind)], **SAMPLING)[0].token_ids

    return answer


def engine_of(model: vl.MiniMaxVL) -> Engine:
    assert isinstance(model.engine, Engine)
    return model.engine


def finish(engine: Engine, requests: list[Request], short: Short) -> None:
    for _ in range(3000):
        if all(request.done for request in requests):
            return
        with short:
            engine.step()
    raise AssertionError("some request does not end")


@settings(max_examples=25, deadline=None)
@given(
    kinds=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    fails=st.sets(st.one_of(st.integers(1, 400), st.integers(1, 30000)), min_size=1, max_size=8),
)
def test_at_any_operation(
    model: vl.MiniMaxVL,
    alone: Callable[[int], list[int]],
    kinds: list[int],
    fails: set[int],
    left_in: Callable[..., dict[str, int]],
) -> None:
    """Each operation fails once at most: a step that reads less, or a request by itself, finds enough the next time."""
    engine, short = engine_of(model), Short(fails)
    params = vl.SamplingParams(**SAMPLING)
    requests = [engine.submit(model.processor(conversation(kind)), params) for kind in kinds]
    finish(engine, requests, short)
    for kind, request in zip(kinds, requests, strict=True):
        if request.error is None:
            assert request.token_ids == alone(kind)
        else:
            assert isinstance(request.error, vl.DeviceError)
            assert request.token_ids == alone(kind)[: request.written]
    failed = sum(request.error is not None for request in requests)
    assert failed <= short.failed
    assert not left_in(model)


@contextmanager
def steps(engine: Engine) -> Iterator[list[list[int]]]:
    """How many tokens of each request each step was to work on."""
    found: list[list[int]] = []
    schedule = engine.scheduler.schedule

    def schedules() -> Any:
        batch = schedule()
        found.append([tokens for _, tokens in batch])
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.scheduler, "schedule", schedules)
        yield found


@pytest.mark.parametrize("most", [40, 20])
def test_prompts_are_read_in_as_large_parts_as_memory_takes(
    model: vl.MiniMaxVL, alone: Callable[[int], list[int]], most: int, left_in: Callable[..., dict[str, int]]
) -> None:
    """All of them are answered, though no step may work on more than so many tokens."""
    engine = engine_of(model)
    forward = model.language_model.forward

    def limited(embeds: torch.Tensor, *args: Any) -> torch.Tensor:
        if len(embeds) > most:
            raise torch.OutOfMemoryError("out of memory: a test's")
        return forward(embeds, *args)

    engine.forget()
    with pytest.MonkeyPatch.context() as patch, steps(engine) as worked:
        patch.setattr(model.language_model, "forward", limited)
        results = model.generate([conversation(1), conversation(0), conversation(1)], **SAMPLING)
    assert [result.token_ids for result in results] == [alone(1), alone(0), alone(1)]
    assert max(map(sum, worked)) > most
    assert sum(sum(step) > most for step in worked) < 6, "it does not go on trying"
    assert not left_in(model)


def test_fewer_are_written_at_once(
    model: vl.MiniMaxVL, alone: Callable[[int], list[int]], left_in: Callable[..., dict[str, int]]
) -> None:
    engine = engine_of(model)
    decode = type(engine.runner.decode)  # type: ignore[union-attr]
    call = decode.__call__

    def limited(self: Any, requests: Any) -> Any:
        if len(requests) > 1:
            raise torch.OutOfMemoryError("out of memory: a test's")
        return call(self, requests)

    with pytest.MonkeyPatch.context() as patch, steps(engine) as worked:
        patch.setattr(decode, "__call__", limited)
        results = model.generate([conversation(0), conversation(1), conversation(0)], **SAMPLING)
    assert [result.token_ids for result in results] == [alone(0), alone(1), alone(0)]
    assert sum(len(step) > 1 and max(step) == 1 for step in worked) < 4
    assert not left_in(model)


def test_one_that_needs_too_much_even_alone_fails_of_that_and_no_other(
    model: vl.MiniMaxVL, alone: Callable[[int], list[int]], left_in: Callable[..., dict[str, int]]
) -> None:
    engine = engine_of(model)
    params = vl.SamplingParams(**SAMPLING)
    requests = [engine.submit(model.processor(conversation(kind)), params) for kind in (0, 1, 0)]
    embed = type(engine.runner._embed)  # type: ignore[union-attr]
    call = embed.__call__

    def limited(self: Any, batch: Any, running: Any) -> Any:
        if any(request is requests[1] for request, _ in batch):
            raise torch.OutOfMemoryError("out of memory: a test's")
        return call(self, batch, running)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "__call__", limited)
        finish(engine, requests, Short(set()))
    assert isinstance(requests[1].error, vl.DeviceError)
    assert "ran out of memory while working on" in str(requests[1].error)
    assert [request.token_ids for request in (requests[0], requests[2])] == [alone(0), alone(0)]
    assert not left_in(model)


def test_images_are_encoded_fewer_tiles_at_a_time(
    model: vl.MiniMaxVL, alone: Callable[[int], list[int]], left_in: Callable[..., dict[str, int]]
) -> None:
    assert model.vision is not None
    features = model.vision.features

    def limited(tiles: torch.Tensor, *args: Any) -> torch.Tensor:
        if len(tiles) > 1:
            raise torch.OutOfMemoryError("out of memory: a test's")
        return features(tiles, *args)

    engine_of(model).forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.vision, "features", limited)
        assert model.generate([conversation(2)], **SAMPLING)[0].token_ids == alone(2)
    assert not left_in(model)


def test_an_answer_is_not_lost_to_what_is_kept_of_it(
    model: vl.MiniMaxVL,
    alone: Callable[[int], list[int]],
    monkeypatch: pytest.MonkeyPatch,
    left_in: Callable[..., dict[str, int]],
) -> None:
    def fails(*_: Any) -> None:
        raise MemoryError

    engine_of(model).forget()
    monkeypatch.setattr(Prefixes, "keep", fails)
    results = model.generate([conversation(1), conversation(0)], **SAMPLING)
    assert [result.token_ids for result in results] == [alone(1), alone(0)]
    assert not left_in(model)


def test_a_beginning_that_cannot_be_had_costs_a_try(
    model: vl.MiniMaxVL,
    alone: Callable[[int], list[int]],
    monkeypatch: pytest.MonkeyPatch,
    left_in: Callable[..., dict[str, int]],
) -> None:
    engine = engine_of(model)
    assert model.generate([conversation(1)], **SAMPLING)[0].token_ids == alone(1)
    assert engine.runner is not None
    recall, fails = type(engine.runner.cache).recall, [True]

    def once(self: Any, slot: int, place: int) -> None:
        if fails:
            fails.pop()
            raise torch.OutOfMemoryError("out of memory: a test's")
        recall(self, slot, place)

    monkeypatch.setattr(type(engine.runner.cache), "recall", once)
    assert model.generate([conversation(1)], **SAMPLING)[0].token_ids == alone(1)
    assert not fails
    assert not left_in(model)


# The scheduler by itself


def entry(prompt: int, written: int = 0) -> Entry:
    return Entry(
        prompt_tokens=prompt, max_new_tokens=9, written=written, computed=prompt + written - 1 if written else 0
    )


def test_what_a_step_does_is_halved_and_grows_again() -> None:
    scheduler = Scheduler[Entry](slots=8, budget=1000)
    batch = [(entry(600), 600), (entry(100), 100), (entry(5, written=1), 1)]
    assert [scheduler.shrink(batch) and scheduler.budget for _ in range(2)] == [350, 350]
    assert scheduler.shrink([(entry(600), LEAST + 1)])
    assert (scheduler.budget, scheduler.slots) == (LEAST, 8)
    assert scheduler.shrink([(entry(600), LEAST), (entry(5, written=1), 1), (entry(5, written=1), 1)])
    assert (scheduler.budget, scheduler.slots, scheduler.shrunk) == (LEAST, 1, True)
    assert not scheduler.shrink([(entry(600), LEAST)])
    for expected in ((2 * LEAST, 2), (4 * LEAST, 4), (8 * LEAST, 8)):
        for _ in range(64):
            assert (scheduler.budget, scheduler.slots) != expected
            scheduler.went_well()
        assert (scheduler.budget, scheduler.slots) == expected
    scheduler.recover()
    assert not scheduler.shrunk
