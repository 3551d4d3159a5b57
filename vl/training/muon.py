"""Muon (Jordan et al. 2024): momentum whose every update is orthogonalised, in bfloat16.

What torch.optim.Muon computes for one matrix after the other, in thousands of launches for a small model, is done here
for all matrices of one shape at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MOMENTUM = 0.95
_STEPS, _COEFFICIENTS, _EPS = 5, (3.4445, -4.7750, 2.0315), 1e-7  # of the quintic iteration, as in the original


class Muon:
    """Updates matrices from their gradients at a rate that gives the updates AdamW's usual size (arXiv:2502.16982).

    Args:
        masters: float32 matrices with gradients, of any shapes.
        momenta: where each one's momentum is kept.
    """

    def __init__(self, masters: Sequence[Tensor], momenta: Sequence[Tensor], weight_decay: float) -> None:
        self.weight_decay = weight_decay
        self.groups: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for master, momentum in zip(masters, momenta, strict=True):
            self.groups.setdefault(master.shape, []).append((master, momentum))

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for shape, group in self.groups.items():
            masters, momenta = [master for master, _ in group], [momentum for _, momentum in group]
            grads = [master.grad for master in masters if master.grad is not None]
            torch._foreach_lerp_(momenta, grads, 1 - _MOMENTUM)
            ahead = torch.stack(grads).lerp_(torch.stack(momenta), _MOMENTUM)  # Nesterov's
            updates = orthogonalised(ahead).float().unbind()
            torch._foreach_mul_(masters, 1 - lr * self.weight_decay)
            torch._foreach_add_(masters, updates, alpha=-lr * 0.2 * max(shape) ** 0.5)


def orthogonalised(x: Tensor) -> Tensor:
    """About the nearest matrices with singular values of 1: [n, rows, columns] to bfloat16 of the same shape."""
    a, b, c = _COEFFICIENTS
    tall = x.shape[1] > x.shape[2]
    x = (x.mT if tall else x).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_EPS)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
