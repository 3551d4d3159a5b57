"""Predicted memory against a GPU's own count, at full width."""

from __future__ import annotations

import pytest
import torch

from text_backbone import HybridCache, MiniMaxText, Packed, TextConfig
from text_backbone.config import hybrid_layers
from vl.plan import FORMATS, Workload
from vl.plan.memory import CUBLAS, cache_memory, prefill_peak
from vl.plan.share import Share
from vl.plan.sizes import weight_bytes

CONFIG = TextConfig(attn_type_list=hybrid_layers(8), num_local_experts=4)


@pytest.fixture(scope="module")
def loaded() -> tuple[MiniMaxText, int]:
    """A model, and the bytes that it takes beside what other tests of the process keep."""
    before = torch.cuda.memory_allocated()
    model = MiniMaxText(CONFIG, device="cuda", dtype=torch.bfloat16).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.normal_(std=weight.shape[-1] ** -0.5)
    return model, torch.cuda.memory_allocated() - before


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "past"), [(8192, 0), (8192, 8192), (8192, 131072)])
@torch.inference_mode()
def test_a_pass_takes_what_is_predicted(loaded: tuple[MiniMaxText, int], tokens: int, past: int) -> None:
    model, weights = loaded
    start = torch.cuda.memory_allocated()
    assert weights == pytest.approx(weight_bytes(Share(CONFIG), FORMATS["bf16"]), rel=0.02)
    work = Workload(past + tokens)
    cache = HybridCache(
        CONFIG, slots=1, pages=work.pages(past + tokens), device="cuda", dtype=torch.bfloat16, scratch=True
    )
    slot = cache.acquire()
    cache.reserve(slot, past + tokens)
    ids = torch.zeros(tokens, dtype=torch.int64, device="cuda")

    def read() -> None:
        packed = Packed.of([tokens], past=[past], slots=[slot], device="cuda")
        model.logits(model(model.embed(ids), packed, cache)[-1:])

    read()
    torch.cuda.reset_peak_memory_stats()
    read()
    predicted = sum(cache_memory(CONFIG, work, past + tokens)) + prefill_peak(CONFIG, tokens, past) + CUBLAS
    measured = torch.cuda.max_memory_allocated() - start
    assert predicted == pytest.approx(measured, rel=0.1)
