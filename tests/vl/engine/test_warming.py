"""Warm-up: all sizes that kernels are compiled for, with progress, and no trace in what comes after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vl
from vl.engine import Engine, EngineConfig
from vl.engine.decode import DecodeStep
from vl.engine.keeping import Keeping
from vl.engine.params import Draw
from vl.engine.warming import rehearsals

ASK = [{"role": "user", "content": "Hello"}]


def engine_of(model: vl.MiniMaxVL) -> Engine:
    assert isinstance(model.engine, Engine)
    return model.engine


def test_it_leaves_no_trace(tiny_checkpoint: Path) -> None:
    told: list[tuple[int, int]] = []
    warm = vl.load(tiny_checkpoint, device="cpu", warm_up=True, progress=lambda *at: told.append(at), max_batch_size=3)
    cold = vl.load(tiny_checkpoint, device="cpu", max_batch_size=3)
    parts = len(list(rehearsals(warm, engine_of(warm).config)))
    assert told[-parts:] == [(done, parts) for done in range(1, parts + 1)]
    engine = engine_of(warm)
    assert engine.runner is not None
    assert engine.counts == engine_of(cold).counts
    assert engine.image_counts == (0, 0)
    assert engine.prefixes is not None
    assert not len(engine.prefixes)
    assert engine.runner.cache.free_pages == engine.runner.cache.pages
    assert engine._forms._tokens is not None, "the vocabulary is read before the first answer of a form"
    found, expected = (model.generate([ASK], max_new_tokens=9)[0] for model in (warm, cold))
    assert (found.token_ids, found.usage) == (expected.token_ids, expected.usage)
    before = engine.counts.hits, engine.counts.tokens, len(engine.prefixes)
    engine.warm_up()
    assert (engine.counts.hits, engine.counts.tokens) == before[:2]
    assert len(engine.prefixes) >= before[2], "what is there is kept"


class _Recorder:
    """Records on any device: a replay runs the function again."""

    def __init__(self) -> None:
        self.runs = 0

    def ready(self, weight: Tensor) -> bool:
        return True

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        self.runs += 1
        return run


def test_every_size_of_a_batch_is_recorded(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = _Recorder()
    monkeypatch.setattr(Keeping, "_recorder", lambda self: recorder if self.config.max_batch_size == 6 else None)
    model = vl.load(tiny_checkpoint, device="cpu", max_batch_size=6, warm_up=True)
    assert recorder.runs == 4 * (len(Draw) + 1)
    expected = vl.load(tiny_checkpoint, device="cpu", max_batch_size=1)
    asked: list[Any] = [[{"role": "user", "content": f"Hello {n}"}] for n in range(6)]
    for sampling in ({}, {"temperature": 1.0, "seed": 1}, {"temperature": 1.0, "top_k": 5, "seed": 1}):
        for count in (1, 2, 3, 5, 6):
            found = model.generate(asked[:count], max_new_tokens=4, **sampling)
            assert [g.token_ids for g in found] == [
                expected.generate([each], max_new_tokens=4, **sampling)[0].token_ids for each in asked[:count]
            ]
    assert recorder.runs == 4 * (len(Draw) + 1), "nothing is recorded when requests come"


def test_a_gpu_rehearses_each_tile_count_and_lengths_up_to_a_pass_and_more(tiny_model: vl.MiniMaxVL) -> None:
    class OnGpu:
        vision, config, device = tiny_model.vision, tiny_model.config, torch.device("cuda")
        end_ids = tiny_model.end_ids

    made: Any = OnGpu()
    parts = list(rehearsals(made, EngineConfig(max_batch_size=5, prefill_tokens=100, cache_tokens=300)))
    assert [part.tiles for part in parts if part.tiles] == [*range(2, 17), 64]
    lengths = [len(part.prompt) for part in parts if part.prompt is not None]
    assert lengths == [1, 4, 16, 64, 100, 164, 2, 2, 2, 2]
    assert any(part.sampling.logprobs and part.sampling.adjusts for part in parts)
    assert any(part.sampling.response_format for part in parts)
    assert {(part.rows, part.draw) for part in parts if part.rows} == {
        (n, d) for n in (1, 2, 4, 5) for d in (*Draw, None)
    }
    token = tiny_model.config.image_token_index
    assert not any(bool((part.prompt.input_ids == token).any()) for part in parts if part.prompt is not None)


def test_an_error_is_told_and_the_counts_are_as_before(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = vl.load(tiny_checkpoint, device="cpu")

    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(DecodeStep, "record", fails)
    with pytest.raises((vl.DeviceError, torch.OutOfMemoryError)):
        model.engine.warm_up()
    assert engine_of(model).counts.tokens == 0
    with pytest.raises(vl.ConfigError, match="warm_up must be True or False"):
        vl.load(tiny_checkpoint, device="cpu", warm_up="yes")  # type: ignore[arg-type]
