"""The passes over the residual stream in plain PyTorch, float32 inside."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def shifted_norm(x: Tensor, shift: Tensor, norm: nn.LayerNorm) -> Tensor:
    """`norm(x + shift)` in float32, in `x`'s dtype.

    Args:
        x: [rows, hidden], contiguous.
        shift: float32 [hidden].
    """
    return _float_norm(x + shift, norm).to(x.dtype)


def embedded_norm(patches: Tensor, token: Tensor, positions: Tensor, norm: nn.LayerNorm) -> Tensor:
    """`norm` of `token` and then the patches of each tile, positions added: the stream at its start.

    Args:
        patches: [n, patches**2, hidden], contiguous.
        token: [hidden], the class token.
        positions: [1 + patches**2, hidden].

    Returns:
        [n * (1 + patches**2), hidden].
    """
    tokens = torch.cat((token.expand(len(patches), 1, -1), patches), 1).float() + positions
    return _float_norm(tokens, norm).to(patches.dtype).flatten(0, 1)


def shifted(x: Tensor, shift: Tensor) -> Tensor:
    """`x + shift` in `x`'s dtype, over `x` [rows, hidden]; float32 `shift` [hidden]."""
    return torch.add(x, shift, out=x)


def _float_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
