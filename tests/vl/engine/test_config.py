"""The engine's settings: what is refused, and that the engine and its model copy together."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vl
from vl.engine import EngineConfig
from vl.engine.config import whole
from vl.loading import patcher_of

HELLO = [{"role": "user", "content": "Hello"}]
LEAST = {field.name: field.metadata["least"] for field in fields(EngineConfig)}


@pytest.mark.parametrize("name", LEAST)
@pytest.mark.parametrize("value", [0, -1, 2.0, 1.5, "8", None, True, [4], float("nan")])
def test_a_setting_that_is_no_whole_number_or_too_small_is_named(name: str, value: Any) -> None:
    least = LEAST[name]
    if value == least and value is not True:
        assert getattr(EngineConfig.of({name: value}), name) == value
        return
    with pytest.raises(vl.ConfigError, match=rf"^{name} must be a whole number of at least {least}, not "):
        EngineConfig.of({name: value})


@pytest.mark.parametrize("name", LEAST)
def test_loading_refuses_what_a_setting_cannot_be(tiny_checkpoint: Path, name: str) -> None:
    with pytest.raises(vl.ConfigError, match=rf"^{name} must be a whole number"):
        vl.load(tiny_checkpoint, device="cpu", **{name: -1})


def test_unknown_settings_are_named_beside_the_known() -> None:
    with pytest.raises(vl.ConfigError, match=r"unknown option batch, pages: .*max_batch_size, .*page_size"):
        EngineConfig.of({"pages": 3, "batch": 3})


@given(st.integers(1, 2**31), st.integers(1, 2**31))
def test_pages_hold_the_tokens_and_no_page_more(tokens: int, size: int) -> None:
    pages = EngineConfig(cache_tokens=np.int64(tokens), page_size=size).pages
    assert (pages - 1) * size < tokens <= pages * size
    assert type(pages) is int


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3), (np.int64(5), 5), (np.uint8(7), 7), (-(10**30), -(10**30)), (True, None), (np.True_, None), (2.0, None)],
)
def test_whole(value: object, expected: int | None) -> None:
    assert whole(value) == expected


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_model_answers_equally_and_apart(
    tiny_checkpoint: Path, duplicate: Callable[[vl.MiniMaxVL], vl.MiniMaxVL]
) -> None:
    model = vl.load(tiny_checkpoint, device="cpu", max_batch_size=3)
    image = np.arange(50 * 60 * 3, dtype=np.uint8).reshape(50, 60, 3)
    expected = model.caption(image, max_new_tokens=6)
    stream = model.stream(HELLO, max_new_tokens=40)
    first = next(stream)  # a request is running: it stays with the original
    other = duplicate(model)
    assert other.engine.config == EngineConfig(max_batch_size=3)
    assert other.engine.model is other
    assert other.caption(image, max_new_tokens=6) == expected
    other.language_model.lm_head.weight.data.neg_()
    assert other.caption(image, max_new_tokens=6) != expected
    assert model.caption(image, max_new_tokens=6) == expected
    assert first + "".join(stream) == model.chat(HELLO, max_new_tokens=40)


def test_a_model_without_an_engine_says_how_it_gets_one(tiny_model: vl.MiniMaxVL) -> None:
    bare = vl.MiniMaxVL(tiny_model.config, tiny_model.processor, device="cpu")
    bare.load_state_dict(tiny_model.state_dict())
    assert bare.logits(bare.processor(HELLO)).equal(tiny_model.logits(bare.processor(HELLO)))
    with pytest.raises(vl.ConfigError, match=r"vl\.loading\.build_model"):
        bare.chat(HELLO)
    bare.engine = vl.engine.Engine(bare)
    assert bare.chat(HELLO, max_new_tokens=5) == tiny_model.chat(HELLO, max_new_tokens=5)


def test_processors_patch_the_same_when_copied(tiny_model: vl.MiniMaxVL) -> None:
    processor = pickle.loads(pickle.dumps(copy.deepcopy(tiny_model.processor)))
    assert processor(HELLO).input_ids.equal(tiny_model.processor(HELLO).input_ids)
    assert processor.patcher.grid(640, 480) == patcher_of(tiny_model.config).grid(640, 480)
