"""Whatever is done to a model between requests: its answers are those of an engine that has kept nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vl
from vl.engine import Engine, EngineConfig
from vl.training.config import LoRAConfig
from vl.training.lora import Adapters, new_adapters

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
SYSTEM = {"role": "system", "content": "Answer what is asked, and nothing else. " * 3}
SAMPLING: dict[str, Any] = {"max_new_tokens": 3, "temperature": 1.0, "seed": 3, "logprobs": True}


def conversation(kind: int) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": ["What is it?", "And this?"][kind % 2]}]
    if kind > 1:
        parts.insert(0, {"type": "image", "image": PICTURE})
    return [SYSTEM, {"role": "user", "content": parts}]


class Changing:
    """A model that is changed in one way after the other. `count`: how often that was since `reset`."""

    def __init__(self, folder: Path, **options: int) -> None:
        self.model = vl.load(folder, device="cpu", dtype="float32", page_size=8, cache_tokens=1200, **options)
        self.first = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.adapters: Adapters | None = None

    @property
    def engine(self) -> Engine:
        assert isinstance(self.model.engine, Engine)
        return self.model.engine

    def reset(self) -> None:
        self.take_off()
        self.model.to(torch.float32).load_state_dict(self.first)
        self.count = self.engine.counts.hits = 0

    def answers(self, engine: Engine) -> list[tuple[list[int], list[float]]]:
        """Of two requests at once, then of two that begin like them."""
        params = vl.SamplingParams(**SAMPLING)
        found = []
        for kinds in ((0, 2), (1, 2)):
            requests = [engine.prepare(self.model.processor(conversation(kind)), params) for kind in kinds]
            found += engine.run(requests)
        return [(each.token_ids, [token.logprob for token in each.logprobs or ()]) for each in found]

    # What may be done to it

    def put_on(self) -> None:
        self.take_off()
        self.model.to(torch.float32)
        self.adapters = new_adapters(self.model, LoRAConfig(rank=2, alpha=4.0), seed=1)
        self.train_adapters()

    def train_adapters(self) -> None:
        generator = torch.Generator().manual_seed(self.count)
        for matrix in self.adapters.tensors().values() if self.adapters else ():
            matrix.add_(torch.randn(matrix.shape, generator=generator), alpha=0.1)

    def take_off(self) -> None:
        if self.adapters is not None:
            self.adapters.detach()
            self.adapters = None

    def merge(self) -> None:
        if self.adapters is not None:
            self.adapters.merge()
            self.adapters = None

    def write(self) -> None:
        """To one weight, each time another one."""
        weights = list(self.model.parameters())
        weights[self.count * 7 % len(weights)].mul_(1.5)

    def load(self) -> None:
        self.model.load_state_dict({name: tensor * 1.1 for name, tensor in self.model.state_dict().items()})

    def cast(self) -> None:
        self.take_off()
        self.model.to(torch.float64 if self.model.dtype == torch.float32 else torch.float32)

    def round(self) -> None:
        """Only the numbers are others then, and may lie where the old ones did."""
        dtype = self.model.dtype
        self.model.to(torch.bfloat16).to(dtype)

    def move(self) -> None:
        """As to another device: to new memory, of which each tensor's is free before the next one is moved."""
        self.model._apply(lambda tensor: tensor * 0.9 if tensor.is_floating_point() else tensor.clone())

    def write_past_the_count(self) -> None:
        self.model.language_model.lm_head.weight.data.mul_(1.5)
        self.engine.forget()


CHANGES: list[Callable[[Changing], object]] = [
    lambda changing: changing.model.to("cpu"),
    Changing.put_on,
    Changing.train_adapters,
    Changing.take_off,
    Changing.merge,
    Changing.write,
    Changing.load,
    Changing.cast,
    Changing.round,
    Changing.move,
    Changing.write_past_the_count,
]


@pytest.fixture(scope="module", params=[0, 800], ids=["device", "host"])
def changing(request: pytest.FixtureRequest, tiny_checkpoint: Path) -> Changing:
    return Changing(tiny_checkpoint, host_cache_tokens=request.param)


@settings(max_examples=5)
@given(changes=st.lists(st.sampled_from(CHANGES), min_size=1, max_size=5))
def test_answers_are_those_of_a_fresh_engine(
    changing: Changing, changes: list[Callable[[Changing], object]], left_in: Callable[..., dict[str, int]]
) -> None:
    changing.reset()
    nothing_kept = EngineConfig(prefix_memory=0, image_memory=0, tile_memory=0, max_batch_size=2, cache_tokens=600)
    for changing.count, change in enumerate([CHANGES[0], *changes], 1):
        with torch.no_grad():
            change(changing)
        found, expected = (changing.answers(e) for e in (changing.engine, Engine(changing.model, nothing_kept)))
        assert [ids for ids, _ in found] == [ids for ids, _ in expected]
        np.testing.assert_allclose([p for _, p in found], [p for _, p in expected], rtol=1e-4, atol=1e-4)
        assert not left_in(changing.model)
    assert changing.engine.counts.hits, "something is found again between the changes"


@pytest.mark.parametrize("change", CHANGES[1:], ids=lambda change: getattr(change, "__name__", ""))
def test_a_session_is_lost_with_the_model_that_has_read_it(changing: Changing, change: Callable[..., object]) -> None:
    changing.reset()
    if change in (Changing.train_adapters, Changing.take_off, Changing.merge):
        with torch.no_grad():
            changing.put_on()
    session = changing.model.read([SYSTEM, {"role": "user", "content": "Read this."}])
    assert session.ask("What is it?", max_new_tokens=2)
    with torch.no_grad():
        change(changing)
    with pytest.raises(vl.InputError, match="the model has changed since"):
        session.ask("What is it?", max_new_tokens=2)
