"""The released names of the encoder's tensors, where our parameters keep them, and weights to train from scratch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vision_encoder.config import VisionConfig
from vision_encoder.model import VisionEncoder
from vision_encoder.slot import Slot

VIT = "vision_tower.vision_model."


def released_shapes(config: VisionConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that a checkpoint of this config has: what `released_tensors` of a model gives.

    Lazy, so that a config is held to a checkpoint's files before any memory is asked for, whatever it says.
    """
    hidden, inner, text = config.hidden_size, config.intermediate_size, config.text_hidden_size
    yield f"{VIT}embeddings.class_embedding", (hidden,)
    yield f"{VIT}embeddings.patch_embedding.weight", (hidden, 3, config.patch_size, config.patch_size)
    yield f"{VIT}embeddings.position_embedding.weight", (1 + config.patches**2, hidden)
    yield "image_newline", (text,)
    linears = {"multi_modal_projector.linear_1": (text, hidden), "multi_modal_projector.linear_2": (text, text)}
    for name, (out, features) in linears.items():
        yield from ((f"{name}.weight", (out, features)), (f"{name}.bias", (out,)))
    yield from ((f"{VIT}pre_layrnorm.{kind}", (hidden,)) for kind in ("weight", "bias"))
    for i in range(config.num_hidden_layers):
        layer = f"{VIT}encoder.layers.{i}"
        for norm in ("layer_norm1", "layer_norm2"):
            yield from ((f"{layer}.{norm}.{kind}", (hidden,)) for kind in ("weight", "bias"))
        matrices = {f"self_attn.{letter}_proj": (hidden, hidden) for letter in ("q", "k", "v", "out")}
        for name, (out, features) in (matrices | {"mlp.fc1": (inner, hidden), "mlp.fc2": (hidden, inner)}).items():
            yield from ((f"{layer}.{name}.weight", (out, features)), (f"{layer}.{name}.bias", (out,)))


def released_tensors(model: VisionEncoder) -> dict[str, Slot]:
    """Every tensor of a released checkpoint: its name -> the place that holds it.

    timm keeps q, k and v in one matrix, of which the released names are thirds.
    """
    vit: Any = model.vit  # timm declares its submodules as plain nn.Module
    named: dict[str, Tensor] = {
        f"{VIT}embeddings.class_embedding": vit.cls_token[0, 0],  # [hidden]
        f"{VIT}embeddings.patch_embedding.weight": vit.patch_embed.proj.weight,  # [hidden, 3, patch, patch]
        f"{VIT}embeddings.position_embedding.weight": vit.pos_embed[0],  # [1 + patches**2, hidden]
        "image_newline": model.image_newline,  # [text_hidden]
    }
    modules: dict[str, nn.Module] = {
        f"{VIT}pre_layrnorm": vit.norm_pre,
        "multi_modal_projector.linear_1": model.projector.linear_1,
        "multi_modal_projector.linear_2": model.projector.linear_2,
    }
    for i, block in enumerate(vit.blocks):
        layer = f"{VIT}encoder.layers.{i}"
        modules[f"{layer}.layer_norm1"] = block.norm1
        modules[f"{layer}.self_attn.out_proj"] = block.attn.proj
        modules[f"{layer}.layer_norm2"] = block.norm2
        modules[f"{layer}.mlp.fc1"] = block.mlp.fc1
        modules[f"{layer}.mlp.fc2"] = block.mlp.fc2
        for kind, fused in block.attn.qkv.named_parameters():  # weight [3 * hidden, hidden], bias [3 * hidden]
            for letter, third in zip("qkv", fused.chunk(3), strict=True):
                named[f"{layer}.self_attn.{letter}_proj.{kind}"] = third
    for name, module in modules.items():
        named |= {f"{name}.{kind}": parameter for kind, parameter in module.named_parameters()}
    return {name: Slot.of(tensor) for name, tensor in named.items()}


@torch.no_grad()
def init_weights(model: VisionEncoder, *, generator: torch.Generator | None = None) -> None:
    """Initialise every parameter for training from scratch.

    Matrices are normal with variance 1 / fan-in, so that any width starts with unit-scale activations; those that
    write to the residual stream are scaled down by sqrt(2 * layers). Embeddings and the newline have a standard
    deviation of 0.02, LayerNorms start as the identity and biases at zero.
    """
    residual = (2 * model.config.num_hidden_layers) ** -0.5
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif name in ("image_newline", "vit.cls_token", "vit.pos_embed"):
            parameter.normal_(std=0.02, generator=generator)
        elif parameter.ndim == 1:
            parameter.fill_(1)
        else:
            scale = residual if name.endswith(("attn.proj.weight", "mlp.fc2.weight")) else 1.0
            parameter.normal_(std=scale * parameter[0].numel() ** -0.5, generator=generator)
