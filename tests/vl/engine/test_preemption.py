"""Pages are taken as tokens are written; what is preempted, or outgrows the cache, gives the same text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vl
from vl.engine import Engine, EngineConfig, Request
from vl.engine import embedding as embedding_module
from vl.engine.scheduler import Scheduler

SAMPLINGS: list[dict[str, Any]] = [
    {"max_new_tokens": 40},
    {"max_new_tokens": 60, "temperature": 1.3, "seed": 5},
    {"max_new_tokens": 50, "temperature": 1.3, "seed": 6, "top_k": 7},
    {"max_new_tokens": 55, "temperature": 0.8, "seed": 5, "top_p": 0.8},
    {"max_new_tokens": 30},
]


def conversation(index: int) -> list[dict[str, Any]]:
    text = {"type": "text", "text": ("Hello", "Describe it in detail.", "Count to 9", "A", "Which?")[index]}
    pixels = np.random.default_rng(index).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    images = [{"type": "image", "image": pixels}] * (index % 3)
    return [{"role": "user", "content": [*images, text]}]


@pytest.fixture
def preempted(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Every request that was preempted, in order."""
    seen: list[Request] = []
    preempt = Scheduler.preempt

    def noted(self: Scheduler[Request], entry: Request) -> None:
        seen.append(entry)
        preempt(self, entry)

    monkeypatch.setattr(Scheduler, "preempt", noted)
    return seen


def endless(folder: Path, **options: int) -> tuple[vl.MiniMaxVL, Engine]:
    """A model that writes on until it must not."""
    model = vl.load(folder, device="cpu", **options)
    model.end_ids = frozenset()
    engine = model.engine
    assert isinstance(engine, Engine)
    return model, engine


def answers(model: vl.MiniMaxVL, engine: Engine) -> list[list[int]]:
    """Token ids of five requests at once, two of which come later."""
    requests = []
    for index, sampling in enumerate(SAMPLINGS):
        if index == 3:
            for _ in range(5):
                engine.step()
        requests.append(engine.submit(model.processor(conversation(index)), vl.SamplingParams(**sampling)))
    return [result.token_ids for result in engine.run(requests)]


@pytest.mark.parametrize(
    "options",
    [
        {"page_size": 4, "cache_tokens": 260},
        {"page_size": 16, "cache_tokens": 16, "prefill_tokens": 33},
        {"page_size": 1, "cache_tokens": 240, "max_batch_size": 3},
    ],
)
def test_a_small_cache_does_not_change_the_answers(
    tiny_checkpoint: Path, preempted: list[Request], options: dict[str, int], left_in: Callable[..., dict[str, int]]
) -> None:
    expected = answers(*endless(tiny_checkpoint))
    assert not preempted
    model, engine = endless(tiny_checkpoint, **options)
    assert answers(model, engine) == expected
    assert preempted
    assert not left_in(model)


def test_an_answer_that_outgrows_the_cache_is_finished_in_a_larger_one(
    tiny_checkpoint: Path, preempted: list[Request]
) -> None:
    sampling = {"max_new_tokens": 100, "temperature": 1.3, "seed": 3}
    expected = endless(tiny_checkpoint)[0].generate([conversation(0)], **sampling)[0].token_ids
    model, engine = endless(tiny_checkpoint, page_size=4, cache_tokens=24)
    pages = []
    request = engine.submit(model.processor(conversation(0)), vl.SamplingParams(**sampling))
    while not request.done:
        engine.step()
        if engine.runner is not None:
            pages.append(engine.runner.cache.pages)
    assert request.token_ids == expected
    prompt = request.prompt_tokens
    assert list(Counter(pages)) == [max(6, -(-(prompt + 1) // 4)), *list(Counter(pages))[1:]]
    assert pages[-1] * 4 >= request.most
    assert pages[-1] <= 2 * -(-request.most // 4)
    assert len(preempted) == len(Counter(pages)) - 1


def test_nothing_is_reserved_for_tokens_that_may_never_come(tiny_checkpoint: Path) -> None:
    model, engine = endless(tiny_checkpoint, page_size=4, cache_tokens=400)
    stream = model.stream(conversation(0), max_new_tokens=10**6)
    next(stream)
    assert engine.runner is not None
    assert engine.runner.cache.pages == 100
    assert engine.runner.cache.free_pages > 85
    (request,) = engine.scheduler.running
    assert engine.runner.cache.free_pages == 100 - -(-request.computed // 4)
    stream.close()
    assert engine.runner.cache.free_pages + engine.runner.cache.idle_pages == 100


class Eye:
    """Counts the images that the vision encoder sees, and the features that wait."""

    def __init__(self, model: vl.MiniMaxVL, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[list[int]] = []  # tiles of the images of each call
        assert model.vision is not None
        forward = model.vision.forward

        def counted(tiles: Tensor, grids: Sequence[Any], **options: Any) -> Tensor:
            self.seen.append([grid.tiles for grid in grids])
            return forward(tiles, grids, **options)

        monkeypatch.setattr(model.vision, "forward", counted)


def test_an_image_across_chunks_is_encoded_once_and_kept_until_its_last_token(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = conversation(2)
    expected = endless(tiny_checkpoint)[0].generate([messages], max_new_tokens=5)[0].token_ids
    model, engine = endless(tiny_checkpoint, prefill_tokens=13, image_memory=0)
    eye = Eye(model, monkeypatch)
    request = engine.submit(model.processor(messages), vl.SamplingParams(max_new_tokens=5))
    held = []
    while not request.done:
        engine.step()
        held.append(sorted(request.features))
        read = request.computed or request.prompt_tokens
        ends = [int(request.prompt.places[end - 1]) for end in request.prompt.ends]
        begun = int(request.prompt.places[0]) < read
        assert held[-1] == [image for image, end in enumerate(ends) if begun and end >= read]
    assert [0, 1] in held
    assert [1] in held
    assert eye.seen == [[2, 2]], "both images in one call, once"
    assert request.token_ids == expected
    assert not hasattr(request, "embeds")


def test_images_of_several_requests_are_encoded_together_up_to_a_bound(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = endless(tiny_checkpoint, prefill_tokens=100, prefix_memory=0, image_memory=0)
    batch = [conversation(2), conversation(0), conversation(1), conversation(2), conversation(1)]
    expected = [g.token_ids for g in model.generate(batch, max_new_tokens=3)]
    eye = Eye(model, monkeypatch)
    assert [g.token_ids for g in model.generate(batch, max_new_tokens=3)] == expected
    assert eye.seen == [[2] * 6]
    monkeypatch.setattr(embedding_module, "AHEAD", 7)
    eye.seen.clear()
    assert [g.token_ids for g in model.generate(batch, max_new_tokens=3)] == expected
    assert eye.seen == [[2, 2, 2], [2, 2, 2]]


def test_a_written_placeholder_is_read_as_a_token_when_it_is_read_again(
    tiny_checkpoint: Path, preempted: list[Request]
) -> None:
    """The id of `<image>` may be drawn like any other: it stands for no image then."""
    roomy, small = endless(tiny_checkpoint), endless(tiny_checkpoint, page_size=4, cache_tokens=120, prefill_tokens=50)
    token = roomy[0].config.image_token_index
    for model, engine in (roomy, small):
        bias = torch.zeros(model.config.text.vocab_size)
        bias[token] = 1e3
        model.language_model.lm_head.register_forward_hook(lambda module, inputs, output, bias=bias: output + bias)
        requests = [
            engine.submit(model.processor(conversation(1)), vl.SamplingParams(max_new_tokens=20)) for _ in range(2)
        ]
        assert [r.token_ids for r in engine.run(requests)] == [[token] * 20] * 2
    assert preempted


def test_settings_reach_the_engine(tiny_checkpoint: Path) -> None:
    config = EngineConfig(
        max_batch_size=3, prefill_tokens=7, cache_tokens=50, page_size=5, prefix_memory=1, image_memory=0
    )
    _, engine = endless(tiny_checkpoint, **vars(config))
    assert engine.config == config
    assert (engine.scheduler.slots, engine.scheduler.budget) == (3, 7)
