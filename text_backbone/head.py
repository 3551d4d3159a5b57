"""The output head: logits in float32, whatever the weights are held in."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from text_backbone.kernels.device import capability

_ROWS = 8192  # of the vocabulary that are widened at once where no product of 16-bit matrices gives float32


class OutputHead(nn.Linear):
    """Hidden states to logits, without bias: float32 sums of products of 16-bit values, not rounded to 16 bits.

    A 16-bit output has 8 bits of a logit, so that of the two best tokens a few in a thousand come out equal or in the
    wrong order.
    """

    def __init__(
        self, hidden: int, vocab: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(hidden, vocab, bias=False, device="meta")
        self.weight = nn.Parameter(torch.empty(vocab, hidden, device=device, dtype=dtype))  # see linear.linear

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] -> float32 [..., vocab]."""
        return logits(x, self.weight)


def logits(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., hidden] times weight [vocab, hidden], float32 [..., vocab]; differentiable."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x, weight = x.to(torch.get_autocast_dtype(kind)), weight.to(torch.get_autocast_dtype(kind))
    with torch.autocast(kind, enabled=False):
        if weight.dtype not in (torch.bfloat16, torch.float16):
            return F.linear(x, weight).float()
        rows = x.reshape(-1, x.shape[-1])
        differentiable = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        out = _Product.apply(rows, weight) if differentiable else _product(rows, weight)
        return out if x.ndim == 2 else out.view(*x.shape[:-1], len(weight))  # FSDP warns of outputs that are views


def _product(x: Tensor, weight: Tensor) -> Tensor:
    if capability(x.device) > (0, 0):  # NVIDIA's libraries have a product that is not rounded
        return torch.mm(x, weight.T, out_dtype=torch.float32)
    wide = x.float()
    return torch.cat([wide @ part.float().T for part in weight.split(_ROWS)], dim=1)


class _Product(torch.autograd.Function):
    """`_product` with the gradients of a 16-bit product, which torch does not give for a wider output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad.to(weight.dtype)
        dx = grad @ weight if ctx.needs_input_grad[0] else None
        dweight = grad.T @ x if ctx.needs_input_grad[1] else None
        return dx, dweight
