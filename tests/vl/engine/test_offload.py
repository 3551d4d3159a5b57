"""`host_cache_tokens`: keys and values in host memory change no answer, and are refused where they cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import text_backbone
import vl
from text_backbone.offload import OffloadedCache, device_bytes, host, host_bytes
from vl.engine import EngineConfig, memory
from vl.engine.scheduler import Scheduler
from vl.loading import build_model

SAMPLINGS: list[dict[str, Any]] = [
    {"max_new_tokens": 40},
    {"max_new_tokens": 60, "temperature": 1.3, "seed": 5},
    {"max_new_tokens": 5},
    {"max_new_tokens": 50, "temperature": 0.8, "seed": 6, "top_p": 0.8},
]


def ask(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def build(folder: Path, **options: int) -> vl.MiniMaxVL:
    """A text model of two softmax layers that writes on until it must not."""
    donor = vl.load(folder, device="cpu")
    text = replace(donor.config.text, attn_type_list=(1, 0, 1))
    model = build_model(replace(donor.config, text=text), donor.processor, engine=EngineConfig(**options)).eval()
    text_backbone.init_weights(model.language_model, std=0.3, generator=torch.Generator().manual_seed(0))
    model.end_ids = frozenset()
    return model


def answers(model: vl.MiniMaxVL, late: int) -> list[list[int]]:
    """Token ids of four requests at once; the last `late` of them come when the others are being written."""
    requests = []
    for index, sampling in enumerate(SAMPLINGS):
        if index == len(SAMPLINGS) - late:
            for _ in range(7):
                model.engine.step()
        inputs = model.processor(ask("Count to 9. " * (1 + 9 * (index == 1))))
        requests.append(model.engine.submit(inputs, vl.SamplingParams(**sampling)))
    return [result.token_ids for result in model.engine.run(requests)]


@pytest.mark.parametrize(
    "options",
    [
        {"page_size": 4, "cache_tokens": 4, "host_cache_tokens": 900},
        {"page_size": 4, "cache_tokens": 200, "host_cache_tokens": 300, "prefill_tokens": 13},
        {"page_size": 1, "cache_tokens": 30, "host_cache_tokens": 220, "prefill_tokens": 50},  # too few for all of them
        {"page_size": 16, "cache_tokens": 16, "host_cache_tokens": 16},  # grows
    ],
    ids=str,
)
def test_the_answers_are_those_of_a_cache_on_the_device(
    tiny_text_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, int],
    left_in: Callable[..., dict[str, int]],
) -> None:
    preempted = []
    preempt = Scheduler.preempt
    monkeypatch.setattr(Scheduler, "preempt", lambda self, entry: preempted.append(entry) or preempt(self, entry))
    expected = answers(build(tiny_text_checkpoint), late=2)
    assert not preempted
    monkeypatch.setattr(host, "BUFFER_TOKENS", 40)
    model = build(tiny_text_checkpoint, **options)
    assert answers(model, late=2) == answers(model, late=0) == expected
    assert bool(preempted) == (options["cache_tokens"] + options["host_cache_tokens"] < 400)
    cache = model.engine.runner.cache
    assert isinstance(cache, OffloadedCache)
    assert not left_in(model)
    assert cache.on_device(range(cache.slots))
    assert cache.pages - cache.device_pages == -(-options["host_cache_tokens"] // cache.page_size)


@pytest.mark.parametrize("free", [2**24, 2**26])
def test_what_fits_counts_host_memory(tiny_text_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    model = build(tiny_text_checkpoint, page_size=4, cache_tokens=40, host_cache_tokens=403)
    monkeypatch.setattr(memory, "free", lambda device: free)
    room = memory.room(model, model.engine.config, 0)
    assert room is not None
    sizes = {"slots": 16, "host_pages": 101, "page_size": 4, "dtype": torch.float32}
    pages = room // 4 - 101
    needed = [device_bytes(model.config.text, pages=pages + more, **sizes) for more in (0, 1)]
    assert needed[0] <= 0.95 * free < needed[1]


def test_what_cannot_be_had_is_refused_by_name(tiny_text_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = vl.load(tiny_text_checkpoint, device="cpu").config.text
    needed = host_bytes(text, host_pages=10, page_size=256, dtype=torch.float32)
    options: dict[str, Any] = {"device": "cpu", "dtype": torch.float32, "host_cache_tokens": 2560}
    monkeypatch.setattr("vl.loading.check_host", lambda *args, **kwargs: None)  # the weights need more
    monkeypatch.setattr(memory, "free", lambda device: needed)
    model = vl.load(tiny_text_checkpoint, **options)
    monkeypatch.setattr(memory, "free", lambda device: needed - 1)
    with pytest.raises(vl.DeviceError, match=r"^host_cache_tokens=2560 needs .* free: lower it"):
        vl.load(tiny_text_checkpoint, **options)
    with pytest.raises(vl.ConfigError, match=r"^host_cache_tokens=10000000000 needs .* lower it"):
        vl.load(tiny_text_checkpoint, **options | {"host_cache_tokens": 10**10})
    with pytest.raises(vl.ConfigError, match=r"^host_cache_tokens must be a whole number of at least 0, not -1"):
        vl.load(tiny_text_checkpoint, **options | {"host_cache_tokens": -1})
    monkeypatch.setattr(type(model), "device", property(lambda self: torch.device("mps")))
    monkeypatch.setattr(memory, "total", lambda device: 2**40)
    with pytest.raises(vl.ConfigError, match=r"^host_cache_tokens: mps has no memory apart"):
        memory.check_config(model, model.engine.config)
