"""The encoder against transformers' CLIP vision tower and LLaVA projector, and its batching invariants."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlavaNextConfig
from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector

from preprocessing.grid import Grid
from preprocessing.patcher import Patcher
from vision_encoder import VisionConfig, VisionEncoder, init_weights, released_tensors

SMALL = VisionConfig(
    hidden_size=32,
    intermediate_size=52,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=28,
    patch_size=7,
    text_hidden_size=24,
)
MID = VisionConfig(
    hidden_size=192, intermediate_size=770, num_hidden_layers=6, num_attention_heads=3, text_hidden_size=64
)
PATCHER = Patcher(pinpoints=((28, 28), (28, 56), (56, 28), (56, 56), (84, 28)), tile=28, patch=7)
SIZES = ((28, 28), (100, 30), (30, 100), (55, 41), (300, 90), (1, 200))


def encoder(config: VisionConfig = SMALL, dtype: torch.dtype = torch.float32) -> VisionEncoder:
    """A random encoder whose biases and norms are not at their neutral values, so that mixing them up shows."""
    generator = torch.Generator().manual_seed(7)
    model = VisionEncoder(config)
    init_weights(model, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.to(dtype)


def batch(sizes: tuple[tuple[int, int], ...] = SIZES) -> tuple[Tensor, list[Grid]]:
    grids = [PATCHER.grid(*size) for size in sizes]
    generator = torch.Generator().manual_seed(3)
    count = sum(grid.tiles for grid in grids)
    return torch.randint(0, 256, (count, 3, 28, 28), dtype=torch.uint8, generator=generator), grids


def clip_twin(model: VisionEncoder) -> CLIPVisionModel:
    """transformers' tower with the same weights, moved over by their released names."""
    config = model.config
    twin: CLIPVisionModel = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            layer_norm_eps=config.layer_norm_eps,
            hidden_act=config.hidden_act,
        )
    ).eval()
    # The checkpoint's names have a `vision_model.` level, which some releases of transformers keep and some drop.
    kept = any(name.startswith("vision_model.") for name in twin.state_dict())
    prefix = "vision_tower." if kept else "vision_tower.vision_model."
    weights = {k.removeprefix(prefix): s.read() for k, s in released_tensors(model).items() if k.startswith(prefix)}
    missing, unexpected = twin.load_state_dict(weights, strict=False)
    assert not unexpected
    # The released tower has no norm after its last block.
    assert all("post_layernorm" in name or "position_ids" in name for name in missing)
    return twin


def clip_pixels(tiles: Tensor, config: VisionConfig) -> Tensor:
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (config.image_mean, config.image_std))
    return ((tiles.double() / 255 - mean) / std).float()


@pytest.mark.parametrize(
    "config", [SMALL, replace(SMALL, hidden_act="quick_gelu", layer_norm_eps=1e-3), MID], ids=["small", "quick", "mid"]
)
def test_features_equal_transformers_clip(config: VisionConfig) -> None:
    model = encoder(config)
    side = config.image_size
    tiles = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = clip_twin(model)(clip_pixels(tiles, config)).last_hidden_state[:, 1:]
        features = model.features(tiles)
    assert features.shape == (2, config.patches**2, config.hidden_size)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-4)


def test_projector_equals_transformers_llava() -> None:
    model = encoder()
    twin = LlavaNextMultiModalProjector(
        LlavaNextConfig(
            vision_config=CLIPVisionConfig(hidden_size=SMALL.hidden_size, num_attention_heads=4),
            text_config=LlamaConfig(hidden_size=SMALL.text_hidden_size, num_attention_heads=4),
            projector_hidden_act="gelu",
            vision_feature_layer=-1,
        )
    )
    prefix = "multi_modal_projector."
    twin.load_state_dict(
        {k.removeprefix(prefix): s.read() for k, s in released_tensors(model).items() if k.startswith(prefix)}
    )
    features = torch.randn(9, SMALL.hidden_size, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model.projector(features), twin(features), rtol=0, atol=1e-5)


def test_default_is_the_303m_vit() -> None:
    model = VisionEncoder(VisionConfig(), device="meta", dtype=torch.bfloat16)
    assert all(parameter.is_meta and parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    assert round(sum(parameter.numel() for parameter in model.vit.parameters()) / 1e6, 1) == 303.5
    assert sum(math.prod(slot.shape) for slot in released_tensors(model).values()) == sum(
        p.numel() for p in model.parameters()
    )


def test_loading_every_slot_writes_every_parameter() -> None:
    model = encoder()
    for slot in released_tensors(model).values():
        slot.load(torch.full(slot.shape, 5.0))
    assert all((parameter == 5).all() for parameter in model.parameters())


def test_mixed_batch_equals_one_image_at_a_time() -> None:
    model = encoder().double()
    tiles, grids = batch()
    with torch.no_grad():
        together = model(tiles, grids)
        parts = [
            model(piece, [grid]) for piece, grid in zip(tiles.split([grid.tiles for grid in grids]), grids, strict=True)
        ]
    assert together.shape == (sum(grid.tokens for grid in grids), SMALL.text_hidden_size)
    torch.testing.assert_close(together, torch.cat(parts), rtol=0, atol=1e-9)


@pytest.mark.parametrize("max_tiles", [1, 2, 5, 1000])
def test_slices_change_nothing(max_tiles: int) -> None:
    model = encoder().double()
    tiles, grids = batch()
    with torch.no_grad():
        torch.testing.assert_close(model(tiles, grids, max_tiles=max_tiles), model(tiles, grids), rtol=0, atol=1e-9)


def test_gradients_reach_every_parameter_and_do_not_depend_on_slices() -> None:
    model = encoder().double()
    tiles, grids = batch()
    gradients = []
    for max_tiles in (64, 3):
        model.zero_grad()
        model(tiles, grids, max_tiles=max_tiles).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    whole, sliced = gradients
    assert whole.keys() == dict(model.named_parameters()).keys()
    for name, gradient in whole.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(sliced[name], gradient, rtol=1e-9, atol=1e-9)


def test_bfloat16_output_and_normalisation_precision() -> None:
    model = encoder(dtype=torch.bfloat16)
    tiles, grids = batch(((55, 41),))
    with torch.no_grad():
        assert model(tiles, grids).dtype == torch.bfloat16
    # Rounded once, from float32: a bfloat16 mean and std would be off by up to 2**-8 of the value.
    expected = clip_pixels(tiles, SMALL).to(torch.bfloat16)
    assert (model.vit.patch_embed.normalisation(tiles, torch.bfloat16) != expected).float().mean() < 1e-3


def test_no_images() -> None:
    assert encoder()(torch.empty(0, 3, 28, 28, dtype=torch.uint8), []).shape == (0, SMALL.text_hidden_size)


def test_init_weights_is_seeded_and_complete() -> None:
    first, second = VisionEncoder(SMALL), VisionEncoder(SMALL)
    for model in (first, second):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(torch.nan)
        init_weights(model, generator=torch.Generator().manual_seed(0))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        (torch.zeros(3, 3, 28, 28), "uint8"),
        (torch.zeros(2, 3, 28, 28, dtype=torch.uint8), "describe 5 tiles"),
        (torch.zeros(5, 3, 28, 14, dtype=torch.uint8), r"\[n, 3, 28, 28\]"),
        (torch.zeros(5, 28, 28, 3, dtype=torch.uint8), r"\[n, 3, 28, 28\]"),
    ],
)
def test_mismatched_tiles_are_refused(tiles: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder()(tiles, [PATCHER.grid(56, 56)])


def test_max_tiles_must_be_positive() -> None:
    tiles, grids = batch()
    with pytest.raises(ValueError, match="max_tiles"):
        encoder()(tiles, grids, max_tiles=0)
