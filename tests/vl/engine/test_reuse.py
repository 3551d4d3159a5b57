"""Prompts that begin like earlier ones go on from there, and give what they give when they are read from the start."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import vl
from preprocessing import Inputs
from vl.engine import Engine, EngineConfig, Generation

NO_TILES = torch.empty(0, 3, 0, 0, dtype=torch.uint8)


def picture(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (50, 60, 3), dtype=np.uint8)


def ask(text: str, *images: np.ndarray[Any, Any]) -> dict[str, Any]:
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


class Probe:
    """A model, and the logits behind every token that it chooses."""

    def __init__(self, folder: Path, **options: int) -> None:
        self.model = vl.load(folder, device="cpu", dtype="float32", **options)
        self.logits: list[Tensor] = []
        self.model.language_model.lm_head.register_forward_hook(lambda *args: self.logits.append(args[2].clone()))

    @property
    def engine(self) -> Engine:
        engine = self.model.engine
        assert isinstance(engine, Engine)
        return engine

    def __call__(self, messages: Any, new: int = 4) -> tuple[Generation, Tensor]:
        self.logits.clear()
        result = self.model.generate([messages], max_new_tokens=new)[0]
        return result, torch.cat(self.logits)


@pytest.fixture(scope="module")
def plain(tiny_checkpoint: Path) -> Probe:
    """It keeps nothing."""
    return Probe(tiny_checkpoint, prefix_memory=0, image_memory=0)


def same(found: tuple[Generation, Tensor], expected: tuple[Generation, Tensor]) -> None:
    assert found[0].token_ids == expected[0].token_ids
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)


def test_the_second_turn_reads_only_what_is_new(tiny_checkpoint: Path, plain: Probe) -> None:
    probe = Probe(tiny_checkpoint)
    first = [ask("What is it?", picture(0))]
    one, _ = probe(first, 20)
    assert one.usage.cached_tokens == 0
    second = [*first, answer(one.text), ask("And now?")]
    two = probe(second)
    same(two, plain(second))
    image = max(probe.model.processor(first).grids[0].tokens, 16)
    assert two[0].usage.cached_tokens > image
    assert (probe.engine.counts.hits, dict(probe.engine.counts.misses)) == (1, {"new": 1})
    other = [ask("How many are there, and of which kind?", picture(0))]
    three = probe(other)
    same(three, plain(other))
    assert three[0].usage.cached_tokens >= image, "up to the end of the image"


def test_the_file_of_an_image_is_decoded_once(tiny_checkpoint: Path, plain: Probe) -> None:
    probe, file = Probe(tiny_checkpoint), io.BytesIO()
    Image.fromarray(picture(0)).save(file, "PNG")
    image: Any = file.getvalue()
    for text, hits in (("What is it?", 0), ("And what is this?", 1)):
        same(probe([ask(text, image)]), plain([ask(text, picture(0))]))
        assert probe.engine.kept_images is not None
        assert probe.engine.kept_images.hits == hits
    found, _ = probe([ask("Again?", picture(0))])
    assert found.usage.cached_tokens >= found.usage.image_tokens, "it is the same image as one of these pixels"
    assert probe.engine.image_counts == (0, 1)
    off = Probe(tiny_checkpoint, tile_memory=0)
    assert off.engine.kept_images is None
    same(off([ask("What is it?", image)]), plain([ask("What is it?", picture(0))]))


def test_another_image_is_never_taken_for_the_same(tiny_checkpoint: Path, plain: Probe) -> None:
    probe = Probe(tiny_checkpoint)
    image = picture(0)
    probe([ask("What is it?", image)])
    changed = image.copy()
    changed[0, 0, 0] ^= 128
    for messages in ([ask("What is it?", changed)], [ask("What is it?", picture(1))]):
        found = probe(messages)
        same(found, plain(messages))
        ids, places = probe.model.processor(messages).input_ids, found[0].usage.cached_tokens
        token = probe.model.config.image_token_index
        assert not bool((ids[:places] == token).any())
    assert probe.engine.image_counts == (0, 3)


@pytest.fixture(scope="module")
def sharing(tiny_checkpoint: Path) -> Probe:
    """Pages of few tokens and a small cache, over which many prompts come."""
    return Probe(tiny_checkpoint, page_size=7, cache_tokens=420, prefill_tokens=50, max_batch_size=3)


pieces = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 45)), min_size=1, max_size=5)


@settings(max_examples=15, deadline=None)
@given(batch=st.lists(pieces, min_size=1, max_size=3), seed=st.integers(0, 3))
def test_any_prompts_give_what_they_give_alone(
    sharing: Probe, plain: Probe, batch: list[list[tuple[int, int]]], seed: int, left_in: Callable[..., dict[str, int]]
) -> None:
    """Plain ids, made of runs that recur, several prompts at once."""
    prompts = []
    for drawn in batch:
        ids = torch.tensor([5 + kind + (at % 3) for kind, length in drawn for at in range(length)])
        prompts.append(Inputs(ids, NO_TILES, []))
    sampling: dict[str, Any] = {"max_new_tokens": 20, "temperature": 1.1, "seed": seed}
    found = sharing.model.generate(prompts, **sampling)
    expected = plain.model.generate(prompts, **sampling)
    assert [result.token_ids for result in found] == [result.token_ids for result in expected]
    assert not left_in(sharing.model)


def trained(model: vl.MiniMaxVL) -> None:
    with torch.no_grad():
        model.language_model.lm_head.weight.mul_(1.5)


def loaded(model: vl.MiniMaxVL) -> None:
    state = {name: value * 1.5 for name, value in model.language_model.state_dict().items()}
    model.language_model.load_state_dict(state)


def hooked(model: vl.MiniMaxVL) -> None:
    model.language_model.layers[0].register_forward_hook(lambda module, args, out: (out[0] * 2, out[1]))


def adapted(model: vl.MiniMaxVL) -> None:
    model.language_model.layers[0].enabled = False  # what an adapter's module has


def data_written(model: vl.MiniMaxVL) -> None:
    model.language_model.lm_head.weight.data.mul_(1.5)
    assert isinstance(model.engine, Engine)
    model.engine.forget()


@pytest.mark.parametrize("change", [trained, loaded, hooked, adapted, data_written])
def test_a_model_that_changed_finds_nothing(tiny_checkpoint: Path, change: Callable[[vl.MiniMaxVL], None]) -> None:
    probe = Probe(tiny_checkpoint)
    messages = [ask("What is it?", picture(0))]
    probe(messages)
    assert probe(messages)[0].usage.cached_tokens > 0
    change(probe.model)
    found = probe(messages)
    assert found[0].usage.cached_tokens == 0
    probe.model.engine = Engine(probe.model, EngineConfig(prefix_memory=0, image_memory=0))
    same(found, probe(messages))
    assert probe.engine.counts.misses == {"off": 1}


def test_a_preempted_request_goes_on_from_what_was_kept(tiny_checkpoint: Path) -> None:
    probe = Probe(tiny_checkpoint)
    engine, model = probe.engine, probe.model
    request = engine.submit(model.processor([ask("What is it?", picture(0))]), vl.SamplingParams(max_new_tokens=9))
    for _ in range(3):
        engine.step()
    assert request.written > 1
    engine.scheduler.preempt(request)
    with torch.inference_mode():
        batch = engine.scheduler.schedule()
    assert [entry for entry, _ in batch] == [request]
    assert request.computed > 16, "the image at least"
    assert request.usage.cached_tokens == 0, "what its own earlier run has kept does not count"
    engine.cancel(request)


def test_room_for_not_even_one_is_refused(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vl.engine.memory.snapshot_bytes", lambda config: 280 * 2**20)
    with pytest.raises(vl.ConfigError, match=r"prefix_memory=100 \(MiB\) is less .* give at least 280, or 0"):
        vl.load(tiny_checkpoint, device="cpu", prefix_memory=100)
