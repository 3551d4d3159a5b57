"""The mixture-of-experts MLP with weights of eight bits and one scale for every row: int8, and FP8 (e4m3).

int8 is converted to x's type on the way to the products, exactly. With FP8 the products are taken of codes on both
sides: x is rounded row by row, and so is what SwiGLU leaves of every assignment.
"""

from __future__ import annotations

import torch
from torch import Tensor

from text_backbone.kernels.moe import decode
from text_backbone.kernels.moe.configs import GEMV_DOWN_8, GEMV_UP_8, inference_tiles
from text_backbone.kernels.moe.grouped import combine, linear, up
from text_backbone.kernels.moe.operands import Scales
from text_backbone.kernels.moe.sort import group
from text_backbone.kernels.moe.stored import Stored
from text_backbone.kernels.row_scaled.rounding import row_codes


def expert_mlp(x: Tensor, w13: Stored, w2: Stored, weights: Tensor, experts: Tensor) -> Tensor:
    """Same as `reference.expert_mlp`, without gradients; w13 and w2 in the same format."""
    if not len(x):
        return x.clone()
    up_codes, up_scales = (part.contiguous() for part in w13.at())
    down_codes, down_scales = (part.contiguous() for part in w2.at())
    weights, experts = weights.contiguous(), experts.contiguous()
    rows, scales = _rows(x.contiguous(), up_codes, up_scales)
    if experts.numel() <= GEMV_UP_8.most:
        h = decode.up(rows, up_codes, experts, GEMV_UP_8, scales)
        rows, scales = _rows(h, down_codes, down_scales)
        return decode.down(rows, down_codes, weights, experts, GEMV_DOWN_8, scales)
    count = len(down_codes)
    first, second = inference_tiles(experts.numel(), count, x.dtype, x.device, up_codes.dtype)
    groups = group(experts, count)
    h, _ = up(rows, up_codes, groups, experts.shape[1], first, save=False, scales=scales)
    rows, scales = _rows(h, down_codes, down_scales)
    return combine(linear(rows, down_codes, groups, second, scales=scales), weights, groups)[0]


def _rows(x: Tensor, codes: Tensor, scales: Tensor) -> tuple[Tensor, Scales]:
    """What is multiplied by a matrix of `codes`, and what the products are multiplied by."""
    if codes.dtype == torch.int8:
        return x, Scales(scales)
    rounded, row_scales = row_codes(x)
    return rounded, Scales(scales, row_scales, x.dtype)
