"""Several answers to one prompt: each is what its seed gives alone, and the prompt is read once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vl
from vl.engine import Engine, Request
from vl.engine.runner import Runner

PICTURE = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
MESSAGES = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What is it?"}]}]
SAMPLING: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.3, "seed": 2**64 - 2}


def tiny(folder: Path, **options: int) -> vl.MiniMaxVL:
    return vl.load(folder, device="cpu", dtype="float32", **options)


@pytest.fixture(scope="module")
def alone(tiny_checkpoint: Path) -> list[list[int]]:
    """What each of five seeds gives by itself; the third is the first after 2^64 - 1."""
    model = tiny(tiny_checkpoint, prefix_memory=0, image_memory=0)
    seeds = [(SAMPLING["seed"] + i) % 2**64 for i in range(5)]
    return [model.generate([MESSAGES], **{**SAMPLING, "seed": seed})[0].token_ids for seed in seeds]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens that each step reads of prompts."""
    counts: list[int] = []
    call = Runner.__call__

    def counted(self: Runner, batch: list[tuple[Request, int]], running: list[Request]) -> Any:
        counts.append(sum(tokens for request, tokens in batch if not request.writing))
        return call(self, batch, running)

    monkeypatch.setattr(Runner, "__call__", counted)
    return counts


@pytest.mark.parametrize(("slots", "prefill"), [(8, 8192), (2, 100)])
def test_answers_are_those_of_their_seeds_and_the_prompt_is_read_once(
    tiny_checkpoint: Path,
    alone: list[list[int]],
    read: list[int],
    slots: int,
    prefill: int,
    left_in: Callable[..., dict[str, int]],
) -> None:
    model = tiny(tiny_checkpoint, max_batch_size=slots, prefill_tokens=prefill)
    found = model.generate([MESSAGES], n=5, logprobs=True, **SAMPLING)
    assert [answer.token_ids for answer in found] == alone
    assert [answer.index for answer in found] == [0, 1, 2, 3, 4]
    assert len(set(map(tuple, alone))) > 1
    prompt = found[0].usage.prompt_tokens
    assert sum(read) == prompt + 4
    assert [answer.usage.cached_tokens for answer in found] == [0, *[prompt - 1] * 4]
    assert not left_in(model)


def test_a_short_prompt_is_read_once_too(tiny_checkpoint: Path, read: list[int]) -> None:
    model = tiny(tiny_checkpoint)
    conversations = [[{"role": "user", "content": text}] for text in ("Hi", "Hello")]
    found = model.generate(conversations, n=3, max_new_tokens=2, temperature=1.0)
    assert [answer.index for answer in found] == [0, 1, 2, 0, 1, 2]
    sizes = [len(model.processor(conversation).input_ids) for conversation in conversations]
    assert [answer.usage.prompt_tokens for answer in found] == [*[sizes[0]] * 3, *[sizes[1]] * 3]
    assert sum(read) == sum(sizes) + 4


def test_without_memory_for_prefixes_each_reads_for_itself(tiny_checkpoint: Path, alone: list[list[int]]) -> None:
    model = tiny(tiny_checkpoint, prefix_memory=0)
    assert [answer.token_ids for answer in model.generate([MESSAGES], n=5, **SAMPLING)] == alone


def test_answers_without_a_seed_differ(tiny_checkpoint: Path) -> None:
    found = tiny(tiny_checkpoint).generate([MESSAGES], n=3, max_new_tokens=20, temperature=2.0)
    assert len({tuple(answer.token_ids) for answer in found}) == 3


@pytest.fixture(scope="module")
def small(tiny_checkpoint: Path) -> vl.MiniMaxVL:
    """So small that the answers preempt each other, and what is kept gives way."""
    return tiny(tiny_checkpoint, page_size=5, cache_tokens=1240, max_batch_size=3)


@settings(max_examples=8, deadline=None)
@given(leaves=st.dictionaries(st.integers(0, 4), st.integers(0, 15), max_size=4))
def test_any_of_them_may_leave_at_any_time(
    small: vl.MiniMaxVL, alone: list[list[int]], leaves: dict[int, int], left_in: Callable[..., dict[str, int]]
) -> None:
    engine = small.engine
    assert isinstance(engine, Engine)
    engine.forget()
    requests = engine.prepare_answers(small.processor(MESSAGES), vl.SamplingParams(n=5, **SAMPLING))
    engine.enqueue(requests)
    step = 0
    while not all(request.done for i, request in enumerate(requests) if i not in leaves or leaves[i] > step):
        for i, at in leaves.items():
            if at == step:
                engine.cancel(requests[i])
        engine.step()
        step += 1
        assert step < 1000
    for i, request in enumerate(requests):
        engine.cancel(request)
        assert request.token_ids == (alone[i][: request.written] if i in leaves else alone[i])
    assert not left_in(small)


def test_where_one_answer_is_returned_several_are_refused(tiny_model: vl.MiniMaxVL) -> None:
    for door in (tiny_model.chat, tiny_model.stream):
        with pytest.raises(vl.InputError, match="n must be 1 here"):
            door(MESSAGES, n=2)
    with pytest.raises(vl.InputError, match="n=2 answers are for generate"):
        tiny_model.engine.submit(tiny_model.processor(MESSAGES), vl.SamplingParams(n=2))
    assert tiny_model.chat(MESSAGES, n=1, max_new_tokens=2) == tiny_model.chat(MESSAGES, max_new_tokens=2)


def test_a_session_gives_several_answers(tiny_checkpoint: Path) -> None:
    model = tiny(tiny_checkpoint)
    with model.read(MESSAGES) as session:
        found = session.generate(["Why?", "Where?"], n=2, **SAMPLING)
        alone = [session.generate([text], **{**SAMPLING, "seed": seed})[0] for text, seed in (
            ("Why?", 2**64 - 2), ("Why?", 2**64 - 1), ("Where?", 2**64 - 2), ("Where?", 2**64 - 1)
        )]  # fmt: skip
        assert [answer.token_ids for answer in found] == [answer.token_ids for answer in alone]
        with pytest.raises(vl.InputError, match="n must be 1 here"):
            session.ask("Why?", n=2)
