"""The released checkpoint's names for the encoder's parameters, and weights to train from scratch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vision_encoder.model import VisionEncoder

VIT = "vision_tower.vision_model."


def released_tensors(model: VisionEncoder) -> dict[str, Tensor]:
    """Map each released name to a view of the parameter storage that has the released shape.

    The views are detached: `view.copy_(tensor)` loads and reading them saves. timm keeps q, k and v in one matrix, of
    which the released names are thirds.
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
    return {name: tensor.detach() for name, tensor in named.items()}


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
