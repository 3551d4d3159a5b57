"""Experts in host memory: what `spill=` of `vl.load` asks for, whether it can be had, and what to expect of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from text_backbone.spill import host_bytes
from vl.config import VLConfig
from vl.engine import memory
from vl.engine.config import EngineConfig, shown, whole
from vl.errors import ConfigError, DeviceError
from vl.plan import Gpu, Machine, Workload, find_format, known_gpus
from vl.plan.gpus import gpu_of
from vl.plan.planner import consider
from vl.plan.share import spilled as spilled_placement
from vl.plan.share import whole as whole_placement
from vl.plan.speed import Estimate

AUTO = "auto"
HOST = torch.device("cpu")

Spill = int | str | None  # what `vl.load` takes


@dataclass(frozen=True)
class Spilled:
    """Experts of every layer that are on the device at once, and what a user should know of it."""

    slots: int
    note: str


def read_spill(spill: Any, devices: Any) -> Spill:
    """The argument `spill` of `vl.load`: None, "auto", or how many experts of every layer are on the device.

    Raises:
        ConfigError: if it is something else, or several devices are asked for too.
    """
    count = whole(spill)
    if spill is None:
        return None
    if (count is None or count < 1) and not (isinstance(spill, str) and spill == AUTO):
        raise ConfigError(
            f"spill={shown(spill)} is not known: give the number of experts of every layer that stay on the device, "
            "or 'auto' for as many as fit"
        )
    if devices is not None:
        raise ConfigError(
            f"spill={shown(spill)} is for a model on one device, and devices={shown(devices)} for one on several: "
            "leave one of them out"
        )
    return AUTO if count is None else count


def place_experts(
    spill: int | str,
    config: VLConfig,
    *,
    name: str,
    format: str | None,
    dtype: torch.dtype,
    device: torch.device,
    engine: EngineConfig,
) -> Spilled | None:
    """How many experts stay on the device. None if all of them do, where that was left open.

    Args:
        spill: as of `read_spill`.
        format: in which the weights will be; None: as they are in `dtype`.

    Raises:
        ConfigError: if the model has not more experts, or the device no memory of its own.
        DeviceError: if the host's memory or the device's does not suffice.
    """
    count, work = config.text.num_local_experts, Workload.of(engine)
    if device.type not in ("cuda", "cpu"):
        raise ConfigError(f"spill={spill!r}: {device} has no memory apart from the host's: leave it out")
    gpu = gpu_of(device)
    if isinstance(spill, str):
        found = _as_many_as_fit(config, format, dtype, device, work)
        if found is None:
            return None
        spill = found
    if spill >= count:
        raise ConfigError(f"spill={spill} would leave all {count} experts on the device: give 1 to {count - 1}")
    needed = host_bytes(config.text, format, dtype)
    there = memory.free(HOST)
    if there is not None and needed > there:
        raise DeviceError(
            f"spill={spill}: the experts of {name} take {memory.gib(needed)} of host memory, and {memory.gib(there)} "
            "are free: quantise the model further, or use a host with more memory"
        )
    on_device = needed * spill // count
    if gpu is None:
        speed = f"No speed is predicted for {device}"
    else:
        rate = tokens_per_second(config, format, gpu, spill, work)
        speed = f"By `vl plan`, expect {rate:,.{0 if rate >= 20 else 1}f} tokens/s of one answer"
    note = (
        f"{name}: {spill} of {count} experts of every layer are on {device} at a time ({memory.gib(on_device)}); all "
        f"of them are in host memory ({memory.gib(needed)}) and come from there when they are chosen. {speed}."
    )
    return Spilled(spill, note)


def most_slots(config: VLConfig, format: str | None, available: int, work: Workload) -> int | None:
    """Experts of every layer that fit beside everything else, by the arithmetic of `vl plan`; None if all of them do.

    Args:
        format: None for 16-bit numbers.
        available: bytes of the device that are free.

    Returns:
        0 if not even one does.
    """
    form = find_format(format or "bf16")
    gpu = replace(next(iter(known_gpus().values())), memory=available)  # what it computes does not enter
    if consider(whole_placement(config), form, Machine(gpu), work).memory.fits:
        return None
    placement = spilled_placement(config, 1)
    assert placement is not None  # one GPU can always be spilled from
    option = consider(placement, form, Machine(gpu), work)
    return int((1 - option.spilled) * config.text.num_local_experts) if option.memory.fits else 0


def tokens_per_second(config: VLConfig, format: str | None, gpu: Gpu, slots: int, work: Workload) -> float:
    """What `vl plan` predicts of one sequence with so many of the experts on the GPU, each as likely to be chosen."""
    placement = spilled_placement(config, 1)
    assert placement is not None
    away = 1 - slots / config.text.num_local_experts
    estimate = Estimate(placement, find_format(format or "bf16"), gpu, away)
    return 1 / estimate.decode(work.tokens, 1)


def _as_many_as_fit(
    config: VLConfig, format: str | None, dtype: torch.dtype, device: torch.device, work: Workload
) -> int | None:
    available = memory.free(device)
    if device.type != "cuda" or dtype.itemsize != 2 or available is None:
        raise ConfigError(
            "spill='auto' is reckoned for GPUs and 16-bit numbers: give the number of experts that stay on the device"
        )
    slots = most_slots(config, format, available, work)
    if slots == 0:
        raise DeviceError(
            f"{device} has {memory.gib(available)} free, which is too little even with one expert of every layer: "
            "quantise the model further, or lower cache_tokens, max_batch_size or prefill_tokens"
        )
    return slots
