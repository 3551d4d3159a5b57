"""Programmatic dependent launch: a kernel's programs take their places while the kernel before them still ends.

What a short kernel costs beside its work is its start, and most kernels of a decode step are short. A kernel that is
launched with the options of `early` calls `wait` before it reads or writes memory.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from text_backbone.kernels.device import HOPPER, capability


@triton.jit
def wait(EARLY: tl.constexpr):
    """Wait until all that was launched before is done and its writes can be seen, and let the next kernel start."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


def early(device: torch.device) -> dict[str, Any]:
    """Options for the launch of a kernel that has a constexpr EARLY and gives it to `wait`."""
    return {"EARLY": True, "launch_pdl": True} if capability(device) >= HOPPER else {"EARLY": False}
