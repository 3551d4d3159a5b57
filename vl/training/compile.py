"""torch.compile for the part of the model where it pays: the ViT's blocks."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from vl.model import MiniMaxVL


def compile_blocks(model: MiniMaxVL) -> bool:
    """Compiles each ViT block in place and tries it out, forward and backward; on any failure all stay eager.

    Returns whether the blocks are compiled. Parameter names do not change.
    """
    if model.vision is None:
        return False
    vit: Any = model.vision.vit
    config = model.vision.config
    try:
        for block in vit.blocks:
            block.compile(dynamic=True)
        for tiles in (3, 5):
            x = torch.randn(tiles, config.patches**2 + 1, config.hidden_size, device=model.device, dtype=model.dtype)
            vit.blocks(x.requires_grad_()).sum().backward()
    except Exception as error:  # any compiler or driver trouble: eager works everywhere
        warnings.warn(f"torch.compile failed, the ViT runs eagerly: {error}", stacklevel=2)
        for block in vit.blocks:
            block._compiled_call_impl = None
        return False
    finally:
        model.zero_grad(set_to_none=True)
    return True
