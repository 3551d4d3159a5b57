"""The vision tower from uint8 tiles to patch features, beside timm and transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from vision_encoder import VisionConfig, VisionEncoder, init_weights
from vl.bench.records import OURS, Call, Case, Contest, Setting, Work
from vl.engine.vision_graphs import VisionGraphs

MODEL = "vit_large_patch14_clip_336"


def cases(setting: Setting) -> list[Case]:
    op = "ViT, scaled down" if setting.small else "ViT-L/14-336"
    counts = (1, 4) if setting.small else (1, 8, 76)
    return [Case(op, f"{n} tile{'s' * (n > 1)}", n, "tiles", partial(_tower, setting, n), "vision") for n in counts]


def tower_work(tiles: int, config: VisionConfig, itemsize: int) -> Work:
    """Weights and pixels read and features written once; the products of every block and of the patches."""
    hidden, inner, patch = config.hidden_size, config.intermediate_size, 3 * config.patch_size**2
    patches, tokens = config.patches**2, config.patches**2 + 1
    weights = config.num_hidden_layers * (4 * hidden * hidden + 2 * hidden * inner)  # of the blocks
    attention = config.num_hidden_layers * 4 * tokens * tokens * hidden
    flops = 2 * tokens * weights + attention + 2 * patches * patch * hidden
    pixels = 3 * config.image_size**2
    return Work((weights + patch * hidden) * itemsize + tiles * (pixels + patches * hidden * itemsize), tiles * flops)


def _config(setting: Setting) -> VisionConfig:
    if not setting.small:
        return VisionConfig()
    return VisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, patch_size=28,
        text_hidden_size=64,
    )  # fmt: skip


def _tower(setting: Setting, count: int) -> Contest:
    config = _config(setting)
    side = config.image_size
    tiles = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, device=setting.device)
    mean, std = (
        torch.tensor(values, device=setting.device).view(3, 1, 1) for values in (config.image_mean, config.image_std)
    )

    def with_pixels(tower: Callable[[Tensor], object]) -> Sequence[Call]:
        """The peers' towers take normalised pixels: normalising is a part of what is compared."""
        return [lambda: tower(tiles.float().div_(255).sub_(mean).div_(std).to(setting.dtype))]

    def ours() -> Sequence[Call]:
        features = partial(_ours(setting).features, tiles, VisionGraphs())
        features()  # what comes a second time becomes a CUDA graph: that is left to the warm-up
        return [features]

    work = tower_work(count, config, setting.dtype.itemsize)
    return Contest(
        work.floor,
        {
            OURS: ours,
            "timm": lambda: with_pixels(_timm(setting)),
            "transformers": lambda: with_pixels(_transformers(setting)),
        },
        how="wall",
    )


@cache
def _ours(setting: Setting) -> VisionEncoder:
    encoder = VisionEncoder(_config(setting), device=setting.device, dtype=setting.dtype).eval()
    init_weights(encoder)
    return encoder


@cache
def _timm(setting: Setting) -> Callable[[Tensor], object]:
    import timm

    config = _config(setting)
    sizes: dict[str, Any] = {}
    if setting.small:
        sizes = {
            "img_size": config.image_size,
            "patch_size": config.patch_size,
            "embed_dim": config.hidden_size,
            "depth": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "mlp_ratio": config.intermediate_size / config.hidden_size,
        }
    model: Any = timm.create_model(MODEL, num_classes=0, **sizes).to(setting.device, setting.dtype).eval()
    features: Callable[[Tensor], object] = model.forward_features
    return features


@cache
def _transformers(setting: Setting) -> Callable[[Tensor], object]:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = _config(setting)
    shape: Any = CLIPVisionConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_act="gelu",
    )
    shape._attn_implementation = "sdpa"
    model: Any = CLIPVisionModel(shape)
    model = model.to(setting.device, setting.dtype).eval()
    return lambda pixels: model(pixel_values=pixels).last_hidden_state
