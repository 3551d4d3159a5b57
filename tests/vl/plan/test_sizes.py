"""Bytes of weights and caches against models and caches built on `meta`; the numbers of the design."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

import pytest
import torch

import vl
from text_backbone import HybridCache, MiniMaxText, TextConfig
from text_backbone.config import hybrid_layers
from text_backbone.offload import device_bytes, host_bytes
from text_backbone.quantization import quantized_backbone
from vision_encoder import VisionConfig, VisionEncoder
from vl.config import VLConfig, read_config
from vl.hub import NANO
from vl.manifest import expected_shapes
from vl.plan.formats import FORMATS, NF4
from vl.plan.memory import EXPERT_ROWS, ROWS, WRITTEN, cache_memory, copied_tokens, host_cache_memory, prefill_peak
from vl.plan.share import Share, by_layers, by_tensor, placements
from vl.plan.sizes import parameters, state_bytes, vision_values, weight_bytes
from vl.plan.workload import Workload

SLICE = TextConfig(attn_type_list=hybrid_layers(8))
SMALL = TextConfig(
    vocab_size=512, hidden_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=32, rotary_dim=16,
    intermediate_size=96, num_local_experts=4, attn_type_list=(0, 1, 0),
)  # fmt: skip


def held(model: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("text", [TextConfig(), SLICE, SMALL], ids=["released", "slice", "small"])
def test_weights_are_the_models(text: TextConfig) -> None:
    model = MiniMaxText(text, device="meta", dtype=torch.bfloat16)
    assert weight_bytes(Share(text), FORMATS["bf16"]) == held(model)
    assert parameters(text) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("format", ["int8", "fp8", "nf4"])
@pytest.mark.parametrize("text", [SLICE, SMALL], ids=["slice", "small"])
def test_quantised_weights_are_the_models(text: TextConfig, format: str) -> None:
    model = quantized_backbone(text, format, device="meta", dtype=torch.bfloat16)
    # Small matrices fill their last nested block in part.
    assert weight_bytes(Share(text), FORMATS[format]) == pytest.approx(held(model), rel=0 if text is SLICE else 1e-3)


@pytest.mark.parametrize("config", [VisionConfig(), read_config(NANO).vision], ids=["released", "nano"])
def test_vision_weights_are_the_towers(config: VisionConfig) -> None:
    model = VisionEncoder(config, device="meta", dtype=torch.bfloat16)
    assert vision_values(config) == sum(parameter.numel() for parameter in model.parameters())


def test_parameters_of_the_release_are_its_checkpoint(vl01: VLConfig) -> None:
    assert parameters(vl01.text, vl01.vision) == sum(prod(shape) for _, shape in expected_shapes(vl01))
    assert parameters(vl01.text) == pytest.approx(456e9, rel=1e-3)


def test_nano_is_what_vl_load_gives() -> None:
    model = vl.load("nano", device="cpu", dtype="bfloat16")
    config = model.config
    assert weight_bytes(Share(config.text, vision=config.vision), FORMATS["bf16"]) == held(model)


@pytest.mark.parametrize("text", [TextConfig(), SLICE, SMALL, read_config(NANO).text], ids=["full", "8", "3", "nano"])
@pytest.mark.parametrize(("batch", "context"), [(1, 1), (1, 256), (4, 1000), (64, 4096), (1, 2**20)])
def test_cache_is_the_engines(text: TextConfig, batch: int, context: int) -> None:
    work = Workload(context, batch)
    cache = HybridCache(
        text, slots=batch, pages=work.pages(context), page_size=work.page_size, device="meta", dtype=torch.bfloat16,
        scratch=True,
    )  # fmt: skip
    states, kv = cache_memory(text, work, context)
    assert states == cache.states.nbytes
    # The page table has no column for the scratch page.
    assert kv == pytest.approx(cache.nbytes - cache.states.nbytes, abs=4 * (batch + 1))


@pytest.mark.parametrize("text", [TextConfig(), SMALL], ids=["full", "3"])
@pytest.mark.parametrize(("batch", "host_tokens"), [(1, 1), (1, 2**20), (16, 2**16 + 1), (64, 2**18)])
def test_pages_in_host_memory_are_the_engines(text: TextConfig, batch: int, host_tokens: int) -> None:
    work = Workload(16384, batch, host_cache_tokens=host_tokens)
    host_pages = -(-host_tokens // 256)
    sizes: dict[str, Any] = {"host_pages": host_pages, "page_size": 256, "dtype": torch.bfloat16}
    pages = max(1, batch * 64 - host_pages)
    states, kv = cache_memory(text, work, 16384)
    # The page table has no column for the scratch page.
    assert states + kv == pytest.approx(device_bytes(text, slots=batch, pages=pages, **sizes), abs=4 * (batch + 1))
    assert host_cache_memory(text, work) == host_bytes(text, **sizes)


def test_numbers_of_the_design(vl01: VLConfig) -> None:
    text, nf4 = vl01.text, FORMATS["nf4"]
    assert 8 * NF4.bytes(6144, 6144) / 6144**2 == pytest.approx(4.127, abs=5e-4)
    assert weight_bytes(Share(text, vision=vl01.vision), nf4) == pytest.approx(240e9, rel=0.005)
    assert state_bytes(text) == 280 * 2**20


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_shares_are_the_whole(vl01: VLConfig, gpus: int) -> None:
    for name, form in FORMATS.items():
        once = weight_bytes(Share(vl01.text, vision=vl01.vision), form)
        layers = by_layers(vl01, gpus)
        assert layers is not None
        towers = 2 * (gpus - 1) * vision_values(vl01.vision)
        assert sum(weight_bytes(share, form) for share in layers.shares) == pytest.approx(once + towers, rel=1e-6), name
        tensor = by_tensor(vl01, gpus)
        assert tensor is not None
        # The tower, routers and norms are on every GPU.
        each = weight_bytes(tensor.shares[0], form)
        assert once <= each * gpus <= once + gpus * 1e9


def test_what_does_not_divide_is_no_placement(vl01: VLConfig) -> None:
    assert by_tensor(vl01, 3) is None
    assert by_tensor(vl01, 16) is None  # of 8 heads of keys and values
    assert by_layers(VLConfig(SMALL), 4) is None
    assert [placement.kind for placement in placements(vl01, 1)] == ["one GPU", "spilled"]
    assert [placement.kind for placement in placements(vl01, 3)] == ["layers", "context"]


@pytest.mark.parametrize("past", [1, 4095, 4096, 8192, 12288, 20000, 65535, 65536, 98304, 122880, 131072, 2**20])
def test_copied_blocks_are_the_kernels(past: int) -> None:
    pytest.importorskip("triton")
    from text_backbone.kernels.softmax.cached import blocks

    sizes = [stop - start for start, stop in blocks(past)]
    alive = max(a + b for a, b in pairwise([*sizes, 0]))  # a block's copies live until those of the next are made
    assert copied_tokens(past) == alive


def test_what_nf4_writes_out_is_the_kernels() -> None:
    pytest.importorskip("triton")
    from text_backbone.kernels.moe import nf4
    from text_backbone.kernels.nf4 import triton

    assert (WRITTEN, EXPERT_ROWS, ROWS) == (nf4._SCRATCH, nf4._FEW_EACH, triton._FEW_ROWS)


def test_the_room_for_what_nf4_writes_out() -> None:
    """At the released widths for experts, where there are many rows; others for a projection."""
    more = [prefill_peak(SLICE, n, 0, FORMATS["nf4"]) - prefill_peak(SLICE, n, 0) for n in (1, 32, 321, 8192)]
    pair = 2 * 2 * 6144 * 9216
    assert more == [0, 0, *[WRITTEN // pair * pair] * 2]
    narrow = TextConfig(attn_type_list=(0,), intermediate_size=64, num_local_experts=2, vocab_size=64)
    matrix = 3 * 2 * 8192 * 6144
    peaks = {form: prefill_peak(narrow, 4096, 0, FORMATS[form]) for form in ("int8", "nf4")}
    heads, states = 4096 * 2 * 8192, 4096 // 512 * 4 * 64 * 128**2  # that the recurrence has beside three times heads
    assert peaks["nf4"] - peaks["int8"] == matrix - heads - states
