"""Patch embedding from uint8 tiles, with the normalisation of pixels folded into the weights on a GPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vision_encoder.kernels.patches import unfolded
from vision_encoder.timm_parts import PatchEmbed

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel in 0..1


class TilePatchEmbed(PatchEmbed):
    """timm's patch embedding, for uint8 tiles [n, 3, S, S]; the convolution's weight is its only parameter.

    Args:
        statistics: what pixels are normalised with.
    """

    def __init__(self, *args: Any, statistics: Statistics, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.statistics = statistics

    def forward(self, tiles: Tensor) -> Tensor:
        """[n, patches**2, hidden]; one matrix product on a GPU, timm's convolution elsewhere."""
        weight = self.proj.weight
        if tiles.is_cuda and weight.dtype != torch.float64:
            return folded_embedding(tiles, weight, self.statistics)
        return super().forward(normalise(tiles, self.statistics, weight.dtype))


def normalise(tiles: Tensor, statistics: Statistics, dtype: torch.dtype) -> Tensor:
    """`(x / 255 - mean) / std` per channel, in float32 until the end."""
    mean, std = _channels(statistics, tiles.device)
    return tiles.to(torch.float32).div_(255).sub_(mean).div_(std).to(dtype)


def folded_embedding(tiles: Tensor, weight: Tensor, statistics: Statistics) -> Tensor:
    """The embedding as a product of pixels and folded weights, differentiable in `weight`.

    With w' = w / (255 std) in float32 and c the integer nearest to 255 mean, a patch gives `w' (x - c)` and a small
    constant `w' (c - 255 mean)`. Pixels less c are integers below 256, which bfloat16 holds exactly. Folded weights it
    would round, so they come as the sum of two numbers, side by side along the depth of the product: nothing is rounded
    but the result. (It also makes the depth of 14 x 14 patches a multiple of 8, which fast kernels ask for.)

    Args:
        tiles: uint8 [n, 3, S, S].
        weight: [hidden, 3, patch, patch].

    Returns:
        [n, patches**2, hidden] in `weight`'s dtype.
    """
    if torch.is_grad_enabled() and weight.requires_grad:
        return _FoldedEmbedding.apply(tiles, weight, statistics)
    return _embedded(tiles, weight, statistics)


class _FoldedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tiles: Tensor, weight: Tensor, statistics: Statistics) -> Tensor:
        ctx.save_for_backward(tiles)
        ctx.shape, ctx.statistics = weight.shape, statistics
        return _embedded(tiles, weight, statistics)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        (tiles,) = ctx.saved_tensors
        hidden, *patch = ctx.shape
        scale, shift = _columns(ctx.statistics, ctx.shape[-1], tiles.device)
        rows = grad.flatten(0, 1)  # [n * patches**2, hidden]
        pixels = _unfolded(tiles, ctx.shape[-1], ctx.statistics, grad.dtype)
        product = (rows.T @ pixels)[:, : len(scale)]  # dL/dw'
        folded = torch.addr(product.float(), rows.sum(0, dtype=torch.float32), shift)
        return None, (folded * scale).to(grad.dtype).view(hidden, *patch), None


def _embedded(tiles: Tensor, weight: Tensor, statistics: Statistics) -> Tensor:
    patch = weight.shape[-1]
    scale, shift = _columns(statistics, patch, tiles.device)
    folded = weight.flatten(1) * scale  # float32 [hidden, 3 * patch**2]
    constant = (folded @ shift).to(weight.dtype)
    depth = len(scale)
    if weight.dtype != torch.float32:
        halves = weight.new_empty(len(weight), 2, depth)
        halves[:, 0] = folded
        torch.sub(folded, halves[:, 0], out=halves[:, 1])
        folded = halves.flatten(1)
    pixels = _unfolded(tiles, patch, statistics, weight.dtype)
    return F.linear(pixels, folded, constant).unflatten(0, (len(tiles), -1))


def _unfolded(tiles: Tensor, patch: int, statistics: Statistics, dtype: torch.dtype) -> Tensor:
    """Pixels less the integer near their mean, [n * patches**2, 3 * patch**2]; below float32 each row holds two."""
    return unfolded(tiles, patch, _centres(statistics, dtype, tiles.device), 1 if dtype == torch.float32 else 2)


def _centre(mean: float) -> int:
    return round(255 * mean)


@cache
def _channels(statistics: Statistics, device: torch.device) -> tuple[Tensor, ...]:
    """Mean and standard deviation, float32 [3, 1, 1] each."""
    with torch.inference_mode(False):  # the cached tensors have to serve training too
        return tuple(torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1) for values in statistics)


@cache
def _centres(statistics: Statistics, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[3, 1, 1]."""
    with torch.inference_mode(False):
        return torch.tensor([_centre(mean) for mean in statistics[0]], dtype=dtype, device=device).view(3, 1, 1)


@cache
def _columns(statistics: Statistics, patch: int, device: torch.device) -> tuple[Tensor, ...]:
    """Of each column of a flattened weight the scale 1 / (255 std) and c - 255 mean: float32 [3 * patch**2] each."""
    scales = [1 / (255 * std) for std in statistics[1]]
    shifts = [_centre(mean) - 255 * mean for mean in statistics[0]]
    with torch.inference_mode(False):
        return tuple(
            torch.tensor(values, dtype=torch.float32, device=device).repeat_interleave(patch**2)
            for values in (scales, shifts)
        )
