from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch

from text_backbone import (
    HybridCache,
    MiniMaxText,
    Packed,
    Slot,
    TextConfig,
    init_weights,
    released_shapes,
    released_tensors,
)


def test_names_and_shapes_of_the_released_model() -> None:
    tensors = released_tensors(MiniMaxText(TextConfig(), device="meta", dtype=torch.bfloat16))
    shapes = {
        r"model\.embed_tokens\.weight": (200064, 6144),
        r"model\.norm\.weight": (6144,),
        r"lm_head\.weight": (200064, 6144),
        r"model\.layers\.L\.(input|post_attention)_layernorm\.weight": (6144,),
        r"model\.layers\.L\.self_attn\.qkv_proj\.weight": (24576, 6144),
        r"model\.layers\.L\.self_attn\.output_gate\.weight": (8192, 6144),
        r"model\.layers\.L\.self_attn\.norm\.weight": (8192,),
        r"model\.layers\.L\.self_attn\.(out|o)_proj\.weight": (6144, 8192),
        r"model\.layers\.L\.self_attn\.q_proj\.weight": (8192, 6144),
        r"model\.layers\.L\.self_attn\.[kv]_proj\.weight": (1024, 6144),
        r"model\.layers\.L\.block_sparse_moe\.gate\.weight": (32, 6144),
        r"model\.layers\.L\.block_sparse_moe\.experts\.E\.w[13]\.weight": (9216, 6144),
        r"model\.layers\.L\.block_sparse_moe\.experts\.E\.w2\.weight": (6144, 9216),
    }
    lightning, softmax = {"qkv_proj", "output_gate", "norm", "out_proj"}, {"q_proj", "k_proj", "v_proj", "o_proj"}
    expected = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for i in range(80):
        inner = {f"self_attn.{n}" for n in (softmax if (i + 1) % 8 == 0 else lightning)}
        inner |= {"input_layernorm", "post_attention_layernorm", "block_sparse_moe.gate"}
        inner |= {f"block_sparse_moe.experts.{e}.{w}" for e in range(32) for w in ("w1", "w2", "w3")}
        expected |= {f"model.layers.{i}.{n}.weight" for n in inner}
    assert set(tensors) == expected
    for name, slot in tensors.items():
        form = re.sub(r"experts\.\d+", "experts.E", re.sub(r"layers\.\d+", "layers.L", name))
        (shape,) = (s for pattern, s in shapes.items() if re.fullmatch(pattern, form))
        assert slot.shape == shape, name
    assert {slot.read().dtype for slot in tensors.values()} == {torch.bfloat16}
    assert sum(math.prod(slot.shape) for slot in tensors.values()) == 456_089_655_296
    assert dict(released_shapes(TextConfig())) == {name: slot.shape for name, slot in tensors.items()}


def test_loading_every_slot_copies_the_model(
    config: Callable[..., TextConfig], build: Callable[..., MiniMaxText]
) -> None:
    source, target = build(config(), seed=1), build(config(), seed=2)
    slots = released_tensors(target)
    for name, slot in released_tensors(source).items():
        slots[name].load(slot.read())
    ids = torch.randint(0, 50, (20,))
    a, b = (m.logits(m(m.embed(ids), Packed.of([20]))) for m in (source, target))
    assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_slot_casts_and_refuses_what_its_dtype_cannot_hold(dtype: torch.dtype) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, 3, dtype=dtype))
    slot = Slot.of(parameter[1])
    values = torch.tensor([1.0, -2.5, 1e-3], dtype=torch.float64)
    slot.load(values)
    assert torch.equal(parameter[1], values.to(dtype))
    assert torch.equal(slot.read(), parameter[1])
    assert not parameter[0].any()
    for wrong in (math.nan, math.inf, -math.inf, 1e300):
        with pytest.raises(ValueError, match="NaN or infinite"):
            slot.load(torch.tensor([0, wrong, 0], dtype=torch.float64))


def test_initialisation_is_seeded_and_trains_a_step(config: Callable[..., TextConfig]) -> None:
    models = [MiniMaxText(config()) for _ in range(2)]
    for model in models:
        init_weights(model, generator=torch.Generator().manual_seed(3))
    first, second = ({name: slot.read() for name, slot in released_tensors(m).items()} for m in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all((t == 1).all() for name, t in first.items() if "norm" in name)
    stds = {name: t.std().item() for name, t in first.items() if "norm" not in name}
    assert 0.018 < stds["model.layers.0.self_attn.qkv_proj.weight"] < 0.022
    assert stds["model.layers.0.self_attn.out_proj.weight"] < 0.01  # 0.02 * 0.9 / (sqrt(2) * 1.7)

    model, ids, router_logits = models[0], torch.randint(0, 50, (30,)), list[torch.Tensor]()
    hidden = model(model.embed(ids), Packed.of([11, 19]), router_logits=router_logits)
    loss = torch.nn.functional.cross_entropy(model.logits(hidden), ids)
    (loss + sum(logits.logsumexp(-1).square().mean() for logits in router_logits)).backward()
    assert [tuple(logits.shape) for logits in router_logits] == [(30, 4)] * 3
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_autocast_training_follows_float32(model: MiniMaxText) -> None:
    ids = torch.randint(0, 50, (150,))

    def gradient(enabled: bool) -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logits = model.logits(model(model.embed(ids), Packed.of([140, 10])))
        assert logits.dtype == torch.float32
        torch.nn.functional.cross_entropy(logits, ids).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact, mixed = gradient(False), gradient(True)
    assert torch.nn.functional.cosine_similarity(mixed, exact, dim=0).item() > 0.9


def test_a_pass_with_a_cache_leaves_no_graph(model: MiniMaxText) -> None:
    cache = HybridCache(model.config, slots=1, pages=2)
    slot = cache.acquire()
    cache.reserve(slot, 5)
    hidden = model(model.embed(torch.arange(5)), Packed.of([5], slots=[slot]), cache)
    assert not hidden.requires_grad
    assert not cache.keys.requires_grad
