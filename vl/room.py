"""Whether the host has the memory for a model on the CPU: Linux promises more than there is, and kills who takes it."""

from __future__ import annotations

import math
from itertools import islice

import torch

from text_backbone.quantization.files import is_quantised
from vl.config import VLConfig
from vl.engine import memory
from vl.errors import DeviceError
from vl.manifest import expected_shapes
from vl.plan import find_format
from vl.plan.share import CONTEXT
from vl.ranks.devices import Placed

_MANY = 1_000_000  # tensors; no host has memory for so many, and a config may have any number


def weight_bytes(config: VLConfig, dtype: torch.dtype) -> int:
    """Of a whole model of this config, in its quantization; at least so many if it has more than a million tensors.

    Args:
        dtype: of everything that is not quantised.
    """
    quantised = None if config.quantization is None else find_format(config.quantization).experts
    return sum(
        math.ceil(quantised.bytes(*shape))
        if quantised is not None and is_quantised(name)
        else math.prod(shape) * dtype.itemsize
        for name, shape in islice(expected_shapes(config), _MANY)
    )


def check_host(config: VLConfig, placed: Placed, *, name: str, dtype: torch.dtype) -> None:
    """Refuse a model on the CPU whose weights alone are more than the host's free memory; other devices say so.

    Args:
        placed: on which devices it is to be, and how it is cut over several.
        name: what to call the model.
        config, dtype: as of `weight_bytes`.

    Raises:
        DeviceError: if it is too large.
    """
    if placed.devices[0].type != "cpu":
        return
    there = memory.free(memory.HOST)
    copies = len(placed.devices) if placed.placement == CONTEXT else 1
    needed = copies * weight_bytes(config, dtype)
    if there is None or needed <= there:
        return
    narrower = "" if config.quantization == "nf4" else "quantise the model further, or "
    raise DeviceError(
        f"the weights of {name} take {memory.gib(needed)} of host memory, and {memory.gib(there)} are free: "
        f"{narrower}use a host with more memory, or GPUs (`vl plan` shows what fits where)"
    )
