"""How far prompts are read, told while they are."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import vl
from vl.cli.progress import ReadingProgress
from vl.engine import Engine
from vl.engine.reading import Watch

MESSAGES = [{"role": "user", "content": "Hello world, 0123456789! " * 6}]
CHUNK = 16


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> vl.MiniMaxVL:
    return vl.load(tiny_checkpoint, device="cpu", prefill_tokens=CHUNK, max_batch_size=2, page_size=8, prefix_memory=0)


def ways(model: vl.MiniMaxVL) -> dict[str, Callable[..., Any]]:
    return {
        "generate": lambda **how: model.generate([MESSAGES], **how),
        "chat": lambda **how: model.chat(MESSAGES, **how),
        "stream": lambda **how: list(model.stream(MESSAGES, **how)),
    }


@pytest.mark.parametrize("way", ["generate", "chat", "stream"])
def test_every_pass_is_told(model: vl.MiniMaxVL, way: str) -> None:
    told: list[vl.Reading] = []
    ways(model)[way](max_new_tokens=3, progress=told.append)
    total = len(model.processor(MESSAGES))
    assert total > 3 * CHUNK
    assert [reading.tokens for reading in told] == [*range(CHUNK, total, CHUNK), total]
    assert {reading.total for reading in told} == {total}
    seconds = [reading.seconds for reading in told]
    assert seconds == sorted(seconds)
    assert all(reading.rate == pytest.approx(reading.tokens / reading.seconds) for reading in told)
    assert told[-1].remaining == 0 < told[0].remaining


def test_of_many_prompts_the_sum_is_told(model: vl.MiniMaxVL) -> None:
    told: list[vl.Reading] = []
    model.generate([MESSAGES] * 5, max_new_tokens=2, progress=told.append)  # of which two run at once
    tokens = [reading.tokens for reading in told]
    assert tokens == sorted(set(tokens))
    assert told[-1].tokens == told[-1].total == 5 * len(model.processor(MESSAGES))


@pytest.mark.parametrize("way", ["generate", "chat", "stream"])
def test_what_the_callback_raises_ends_its_callers_request_alone(model: vl.MiniMaxVL, way: str) -> None:
    expected = model.chat(MESSAGES, max_new_tokens=5)
    other = model.engine.submit(model.processor(MESSAGES), vl.SamplingParams(max_new_tokens=5))

    def fail(_: vl.Reading) -> None:
        raise RuntimeError("the window was closed")

    with pytest.raises(RuntimeError, match="the window was closed"):
        ways(model)[way](max_new_tokens=5, progress=fail)
    while not other.done:
        model.engine.step()
    assert other.result().text == expected
    assert isinstance(model.engine, Engine)
    assert not model.engine.scheduler.running


@pytest.mark.parametrize("way", ["generate", "chat", "stream"])
def test_a_progress_that_cannot_be_called_is_refused(model: vl.MiniMaxVL, way: str) -> None:
    with pytest.raises(vl.InputError, match="progress=True cannot be called"):
        ways(model)[way](progress=True)


def test_a_prompt_that_gave_its_pages_back_is_told_as_it_is(model: vl.MiniMaxVL) -> None:
    request = model.engine.prepare(model.processor(MESSAGES), vl.SamplingParams(max_new_tokens=2))
    told: list[int] = []
    watch = Watch([request], lambda reading: told.append(reading.tokens))
    for computed in (CHUNK, 0, CHUNK, 2 * CHUNK, 2 * CHUNK):
        request.computed = computed
        watch()
    request.computed, request.written = 0, 1
    watch()
    assert told == [CHUNK, 0, CHUNK, 2 * CHUNK, request.prompt_tokens]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_command_line_shows_long_prompts_in_a_terminal(terminal: bool) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=120)
    with ReadingProgress(console) as progress:
        progress(vl.Reading(100, 100, 1.0, 100.0))
        assert shown.getvalue() == ""
        progress(vl.Reading(2_000, 10_000, 2.0, 1_000.0))
        progress(vl.Reading(8_000, 10_000, 4.0, 2_000.0))
        progress(vl.Reading(10_000, 10_000, 5.0, 2_000.0))
    assert ("of 10,000 tokens" in shown.getvalue()) == terminal
    assert ("tokens/s" in shown.getvalue()) == terminal
