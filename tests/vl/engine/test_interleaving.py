"""Whatever comes, leaves, fails or gives way when: each request has the text it gets alone, and nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vl
from preprocessing import Conversation
from vl.engine import Engine, Request
from vl.engine.runner import Runner

PICTURES = [np.random.default_rng(seed).integers(0, 256, (50, 60, 3), dtype=np.uint8) for seed in range(2)]
TEXTS = ["Hello", "Describe it in detail, and then count what there is.", "A"]


def conversation(kind: int) -> list[dict[str, Any]]:
    """Two pictures by three questions, the last ones in a second turn; the questions without a picture; and others."""
    if kind == ASKED:
        return [*READ, {"role": "user", "content": TEXTS[0]}]
    if kind == NO_IMAGE:
        return [{"role": "user", "content": [{"type": "image", "image": b"no image"}]}]
    picture, text = divmod(kind, 3)
    parts = [{"type": "image", "image": PICTURES[picture]}] if picture < 2 else []
    first = {"role": "user", "content": [*parts, {"type": "text", "text": TEXTS[text]}]}
    if text < 2:
        return [first]
    return [first, {"role": "assistant", "content": "Well."}, {"role": "user", "content": TEXTS[1]}]


SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.2, "seed": 3},
    {"temperature": 0.9, "seed": 4, "top_k": 9},
    {"repetition_penalty": 1.4, "frequency_penalty": 0.7, "logprobs": True},
    {"temperature": 1.1, "seed": 5, "presence_penalty": -1.5, "logit_bias": {70: 4.0, 71: 3.5}, "min_p": 0.01},
    {"temperature": 1.0, "seed": 6, "response_format": {"type": "regex", "pattern": "[a-d]{3,40}"}},
]
READ = [{"role": "user", "content": "A red circle at the top left, and a blue square."}]
ASKED = 9  # the conversation that is a question to a session which has read that
NO_IMAGE = 10  # one with an image that cannot be read


def tiny(folder: Path, **options: int) -> vl.MiniMaxVL:
    return vl.load(folder, device="cpu", dtype="float32", **options)


class Broken(RuntimeError):
    """What a step fails of, after it has written to the states."""


@pytest.fixture(scope="module")
def plain(tiny_checkpoint: Path) -> vl.MiniMaxVL:
    return tiny(tiny_checkpoint, prefix_memory=0, image_memory=0, max_batch_size=1)


@pytest.fixture(scope="module")
def shared(tiny_checkpoint: Path) -> vl.MiniMaxVL:
    """Small in everything, so that all of it runs out."""
    return tiny(tiny_checkpoint, page_size=5, cache_tokens=360, prefill_tokens=60, max_batch_size=3, mixed_tokens=30)


@pytest.fixture(scope="module")
def session(shared: vl.MiniMaxVL) -> vl.Session:
    return shared.read(READ)


@pytest.fixture(scope="module")
def alone(plain: vl.MiniMaxVL) -> Any:
    @cache
    def answer(kind: int, sampling: int, length: int) -> list[int]:
        return plain.generate([conversation(kind)], max_new_tokens=length, **SAMPLINGS[sampling])[0].token_ids

    return answer


requests = st.lists(
    st.tuples(
        st.integers(0, 10),  # conversation
        st.integers(0, len(SAMPLINGS) - 1),  # sampling
        st.sampled_from([1, 6, 25]),  # length
        st.integers(0, 12),  # comes in this step
        st.one_of(st.just(None), st.integers(0, 12)),  # leaves so many steps later
        st.integers(0, 1),  # priority
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=int(os.environ.get("VL_INTERLEAVINGS", "12")))
@given(
    drawn=requests,
    fails=st.sets(st.integers(0, 25), max_size=3),
    short=st.sets(st.integers(0, 25), max_size=3),
    poison=st.one_of(st.none(), st.integers(0, 5)),
)
def test_any_interleaving(
    shared: vl.MiniMaxVL,
    session: vl.Session,
    alone: Any,
    drawn: list[tuple[int, int, int, int, int | None, int]],
    fails: set[int],
    short: set[int],
    poison: int | None,
    left_in: Callable[..., dict[str, int]],
) -> None:
    """`VL_INTERLEAVINGS=120` for as many.

    `fails`: steps that do, once; `short`: those that run out of memory. `poison`: the request that makes every step
    fail in which it is to write on.
    """
    engine = shared.engine
    assert isinstance(engine, Engine)
    made: dict[int, Request] = {}
    left: set[int] = set()
    number = 0
    call = Runner.__call__

    def runner(self: Runner, batch: list[tuple[Request, int]], running: list[Request]) -> list[tuple[Request, int]]:
        victim = None if poison is None else made.get(poison)
        if number in fails or any(request is victim and request.written == 3 for request, _ in batch):
            fails.discard(number)
            self.cache.states[:, [request.slot for request, _ in batch]] += 1
            raise Broken
        if number in short:
            short.discard(number)
            raise torch.OutOfMemoryError("out of memory: a test's")
        return call(self, batch, running)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "__call__", runner)
        while number < 13 or not all(request.done or i in left for i, request in made.items()):
            for i, (kind, sampling, length, comes, leaves, priority) in enumerate(drawn):
                wanted = {"max_new_tokens": length, "priority": priority, **SAMPLINGS[sampling]}
                if comes == number and kind == NO_IMAGE:
                    with pytest.raises(vl.ImageError, match="image 1"):
                        shared.processor(conversation(kind))
                elif comes == number and kind == ASKED:
                    made[i] = session._request(Conversation.of(conversation(kind)[1:]), wanted)
                    engine.enqueue([made[i]])
                elif comes == number:
                    made[i] = engine.submit(shared.processor(conversation(kind)), vl.SamplingParams(**wanted))
                if leaves is not None and comes + leaves == number and i in made and not made[i].done:
                    engine.cancel(made[i])
                    left.add(i)
            engine.step()
            number += 1
            assert number < 2000
    for i, (kind, sampling, length, *_) in enumerate(drawn):
        if kind == NO_IMAGE:
            continue
        expected = alone(kind, sampling, length)
        if i in left or isinstance(made[i].error, Broken | vl.DeviceError):  # too little memory even for it alone
            assert made[i].token_ids == expected[: made[i].written]
        else:
            assert made[i].token_ids == expected
    assert not left_in(shared)


def test_answers_of_one_prompt_share_its_reading(plain: vl.MiniMaxVL, tiny_checkpoint: Path) -> None:
    model = tiny(tiny_checkpoint)
    inputs = model.processor([{"role": "user", "content": "Tell me all about it, at length. " * 40}])
    ways = [vl.SamplingParams(max_new_tokens=5, temperature=1.0, seed=seed) for seed in range(4)]
    found, expected = (each.engine.run([each.engine.prepare(inputs, way) for way in ways]) for each in (model, plain))
    assert [result.token_ids for result in found] == [result.token_ids for result in expected]
    read = [result.usage.prompt_tokens - result.usage.cached_tokens for result in found]
    assert read[0] == len(inputs.input_ids)
    assert max(read[1:]) < 30
