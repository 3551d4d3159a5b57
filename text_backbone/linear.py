"""Projections without bias, created uninitialised, and several of one input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


def linear(
    inputs: int, outputs: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> nn.Linear:
    """A bias-free `nn.Linear` with memory but no values: filling weights that a checkpoint will replace is slow.

    `nn.utils.skip_init` would do, but its `empty_like` of meta tensors imports sympy, which takes a third of a second.
    """
    module = nn.Linear(inputs, outputs, bias=False, device="meta")
    module.weight = nn.Parameter(torch.empty(outputs, inputs, device=device, dtype=dtype))
    return module


class Together(nn.Module):
    """A projection with kernels of its own, which save launches of others."""

    def together(self, x: Tensor, others: Sequence[nn.Module]) -> list[Tensor] | None:
        """Its output and those of `others`; None if they are to be computed one by one."""
        raise NotImplementedError

    def write(self, y: Tensor, x: Tensor) -> bool:
        """Write its output to y [T, out], whose rows may be apart; False, and nothing, if it is to be copied there."""
        raise NotImplementedError


def project(x: Tensor, *projections: nn.Module) -> Iterator[Tensor]:
    """The output of each projection of x [T, in]: [T, out]. What is not computed together is when it is asked for."""
    first, *others = projections
    outputs = first.together(x, others) if isinstance(first, Together) and not any(map(_hooked, projections)) else None
    yield from (module(x) for module in projections) if outputs is None else outputs


def project_to(y: Tensor, x: Tensor, projection: nn.Module) -> None:
    """Write the output of a projection of x [T, in] to y [T, out], whose rows may be apart. Without gradients."""
    if not isinstance(projection, Together) or _hooked(projection) or not projection.write(y, x):
        y.copy_(projection(x))


def _hooked(module: nn.Module) -> bool:
    """Whether somebody, an adapter say, wants to see what goes through."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
