"""Memory that runs out on one of several ranks: all do less at once, and every request ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vl
from vl.engine import EngineConfig
from vl.ranks.model import SplitVL
from vl.ranks.processes import Ranks

sys.path.append(str(Path(__file__).parent))
import builders

OPTIONS = {"max_batch_size": 3, "prefill_tokens": 128, "cache_tokens": 1500, "page_size": 16}
SAMPLING: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.9, "seed": 5}


def ask(text: str, *images: Image.Image) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8))
QUESTIONS = [ask("Describe it in detail, and then count what there is. " * 3), ask("Hello"), ask("What?", PICTURE)]


@pytest.mark.parametrize(
    ("placement", "limits"),
    [
        (
            "tensor",
            {"self_attn.out_proj": 70, "o_proj": 60, "block_sparse_moe.experts": 40, "vision.projector": 0},
        ),
        ("layers", {"self_attn": 40}),
    ],
)
def test_all_ranks_do_less_at_once(
    tiny_checkpoint: Path, tmp_path: Path, left_in: Callable[..., dict[str, int]], placement: str,
    limits: Mapping[str, int],
) -> None:  # fmt: skip
    """An image that needs too much, however little is done beside it, fails of that, and no other request does."""
    folder, engine = builders.wide(tmp_path / "wide", tiny_checkpoint), EngineConfig.of(OPTIONS)
    one = vl.load(folder, device="cpu", dtype="float32", **OPTIONS)
    expected = [found.token_ids for found in one.generate(QUESTIONS, **SAMPLING)]
    build = partial(builders.short, folder, placement, limits)
    ranks = Ranks(build, [torch.device("cpu")] * 2, engine, timeout=200)
    try:
        split = SplitVL(one.config, one.processor, ranks, name="", dtype=torch.float32, engine=engine).eval()
        params = vl.SamplingParams(**SAMPLING)
        requests = [split.engine.submit(split.processor(question), params) for question in QUESTIONS]
        while not all(request.done for request in requests):
            split.engine.step()
        if "vision.projector" in limits:
            assert isinstance(error := requests.pop().error, vl.DeviceError)
            assert "ran out of memory while working on" in str(error)
            assert "rank 1 (cpu): out of memory: a test's" in str(error)
        for request, tokens in zip(requests, expected, strict=False):
            assert request.result().token_ids == tokens
        assert not left_in(split)
        assert split.generate(QUESTIONS[:1], **SAMPLING)[0].token_ids == expected[0]
    finally:
        ranks.close()
