"""Router and experts of the mixture-of-experts MLP."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from text_backbone.kernels.device import has_e4m3, use_gpu_kernels
from text_backbone.kernels.moe import reference
from text_backbone.kernels.moe.stored import Stored

__all__ = ["expert_mlp", "route"]


def route(x: Tensor, gate: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Same as `reference.route`."""
    if use_gpu_kernels(x):
        from text_backbone.kernels.moe import triton

        return triton.route(x, gate, top_k)
    return reference.route(x, gate, top_k)


def expert_mlp(x: Tensor, w13: Tensor | Stored, w2: Tensor | Stored, weights: Tensor, experts: Tensor) -> Tensor:
    """Same as `reference.expert_mlp`, which also computes with weights that no kernel reads as they are stored."""
    kernels = kernels_for(x, w13, w2, weights)
    return (kernels or reference).expert_mlp(x, w13, w2, weights, experts)


def kernels_for(x: Tensor, w13: Tensor | Stored, w2: Tensor | Stored, weights: Tensor) -> ModuleType | None:
    """The module of kernels for `x` and for weights stored as these are. Stored ones' have no gradients."""
    if not use_gpu_kernels(x):
        return None
    if isinstance(w13, Tensor) and isinstance(w2, Tensor):
        from text_backbone.kernels.moe import triton

        return triton if x.dtype == w13.dtype == w2.dtype else None
    if torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad):
        return None
    formats = {getattr(w13, "format", None), getattr(w2, "format", None)}
    if formats == {"int8"} or (formats == {"fp8"} and has_e4m3(x.device)):
        from text_backbone.kernels.moe import row_scaled

        return row_scaled
    if formats == {"nf4"}:
        from text_backbone.kernels.moe import nf4

        return nf4
    return None
