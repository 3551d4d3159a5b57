"""Patch embedding from uint8 tiles, with the normalisation of pixels folded into the weights on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vision_encoder.kernels.patches import unfolded
from vision_encoder.timm_parts import PatchEmbed


class Normalisation:
    """`(x / 255 - mean) / std` of each channel. Keeps the few small tensors that this takes, once made.

    Args:
        mean: of each channel, in 0..1.
        std: standard deviation of each channel, likewise.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        centres = [round(255 * value) for value in mean]
        self._values = {
            "mean": list(mean),
            "std": list(std),
            "centre": centres,
            "scale": [1 / (255 * value) for value in std],
            "shift": [centre - 255 * value for centre, value in zip(centres, mean, strict=True)],
        }
        self._tensors: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, tiles: Tensor, dtype: torch.dtype) -> Tensor:
        """Normalised tiles uint8 [n, 3, S, S], in float32 until the end."""
        mean, std = (self._tensor(name, tiles.device).view(3, 1, 1) for name in ("mean", "std"))
        return tiles.to(torch.float32).div_(255).sub_(mean).div_(std).to(dtype)

    def centres(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """c, the integer nearest to 255 mean: [3, 1, 1]."""
        return self._tensor("centre", device, dtype).view(3, 1, 1)

    def columns(self, patch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of each column of a flattened weight 1 / (255 std) and c - 255 mean: float32 [3 * patch**2] each."""
        scale, shift = (self._tensor(name, device, repeats=patch**2) for name in ("scale", "shift"))
        return scale, shift

    def _tensor(
        self, name: str, device: torch.device, dtype: torch.dtype = torch.float32, *, repeats: int = 1
    ) -> Tensor:
        """[3 * repeats]. A GPU would have to be waited for if it were sent again."""
        key = (name, device, dtype, repeats)
        if key not in self._tensors:
            with torch.inference_mode(False):  # what is kept has to serve training too
                values = torch.tensor(self._values[name], dtype=dtype, device=device)
                self._tensors[key] = values.repeat_interleave(repeats)
        return self._tensors[key]


class TilePatchEmbed(PatchEmbed):
    """timm's patch embedding, for uint8 tiles [n, 3, S, S]; the convolution's weight is its only parameter.

    Args:
        normalisation: of the pixels.
    """

    def __init__(self, *args: Any, normalisation: Normalisation, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.normalisation = normalisation

    def forward(self, tiles: Tensor) -> Tensor:
        """[n, patches**2, hidden]; one matrix product on a GPU, timm's convolution elsewhere."""
        weight = self.proj.weight
        if tiles.is_cuda and weight.dtype != torch.float64:
            return folded_embedding(tiles, weight, self.normalisation)
        return super().forward(self.normalisation(tiles, weight.dtype))


def folded_embedding(tiles: Tensor, weight: Tensor, normalisation: Normalisation) -> Tensor:
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
        return _FoldedEmbedding.apply(tiles, weight, normalisation)
    return _embedded(tiles, weight, normalisation)


class _FoldedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tiles: Tensor, weight: Tensor, normalisation: Normalisation) -> Tensor:
        ctx.save_for_backward(tiles)
        ctx.shape, ctx.normalisation = weight.shape, normalisation
        return _embedded(tiles, weight, normalisation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        (tiles,) = ctx.saved_tensors
        hidden, *patch = ctx.shape
        scale, shift = ctx.normalisation.columns(ctx.shape[-1], tiles.device)
        rows = grad.flatten(0, 1)  # [n * patches**2, hidden]
        pixels = _unfolded(tiles, ctx.shape[-1], ctx.normalisation, grad.dtype)
        product = (rows.T @ pixels)[:, : len(scale)]  # dL/dw'
        folded = torch.addr(product.float(), rows.sum(0, dtype=torch.float32), shift)
        return None, (folded * scale).to(grad.dtype).view(hidden, *patch), None


def _embedded(tiles: Tensor, weight: Tensor, normalisation: Normalisation) -> Tensor:
    patch = weight.shape[-1]
    scale, shift = normalisation.columns(patch, tiles.device)
    folded = weight.flatten(1) * scale  # float32 [hidden, 3 * patch**2]
    constant = (folded @ shift).to(weight.dtype)
    depth = len(scale)
    if weight.dtype != torch.float32:
        halves = weight.new_empty(len(weight), 2, depth)
        halves[:, 0] = folded
        torch.sub(folded, halves[:, 0], out=halves[:, 1])
        folded = halves.flatten(1)
    pixels = _unfolded(tiles, patch, normalisation, weight.dtype)
    return F.linear(pixels, folded, constant).unflatten(0, (len(tiles), -1))


def _unfolded(tiles: Tensor, patch: int, normalisation: Normalisation, dtype: torch.dtype) -> Tensor:
    """Pixels less the integer near their mean, [n * patches**2, 3 * patch**2]; below float32 each row holds two."""
    return unfolded(tiles, patch, normalisation.centres(dtype, tiles.device), 1 if dtype == torch.float32 else 2)
