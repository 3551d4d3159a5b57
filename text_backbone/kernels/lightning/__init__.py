"""Lightning attention: prefill, chunked prefill and decode."""

from __future__ import annotations

import torch
from torch import Tensor

from text_backbone.kernels.device import use_gpu_kernels
from text_backbone.kernels.lightning import reference
from text_backbone.kernels.lightning.link import Link
from text_backbone.kernels.lightning.reference import lightning_recurrence
from text_backbone.packed import Packed

__all__ = ["Link", "lightning_attention", "lightning_recurrence"]

HEAD_DIMS = (32, 64, 128)  # of the GPU kernels


def lightning_attention(
    qkv: Tensor, slopes: Tensor, packed: Packed, states: Tensor | None = None, link: Link | None = None
) -> Tensor:
    """Same as `reference.lightning_attention`; on a GPU its kernels, which are differentiable without `states`."""
    if use_gpu_kernels(qkv) and qkv.shape[-1] // (3 * len(slopes)) in HEAD_DIMS:
        through_states = states is not None and torch.is_grad_enabled() and (qkv.requires_grad or states.requires_grad)
        if not through_states:
            from text_backbone.kernels.lightning import triton as kernels

            return kernels.lightning_attention(qkv, slopes, packed, states, link)
    return reference.lightning_attention(qkv, slopes, packed, states, link)
