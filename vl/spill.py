"""Experts in host memory: what `spill=` of `vl.load` asks for, whether it can be had, and what to expect of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from text_backbone.parallel import Layout
from text_backbone.spill import host_bytes
from vl.config import VLConfig
from vl.engine import memory
from vl.engine.config import EngineConfig, shown, whole
from vl.errors import ConfigError, DeviceError
from vl.plan import Gpu, Machine, Workload, find_format, known_gpus
from vl.plan.gpus import gpu_of
from vl.plan.planner import consider
from vl.plan.share import TENSOR, by_tensor
from vl.plan.share import spilled as spilled_placement
from vl.plan.share import whole as whole_placement
from vl.plan.speed import Estimate
from vl.ranks.devices import CONTEXT, EXPERT, Placed

AUTO = "auto"
HOST = torch.device("cpu")

Spill = int | str | None  # what `vl.load` takes


@dataclass(frozen=True)
class Spilled:
    """Experts of every layer that are on a device at once, of those that are its, and what a user should know of it."""

    slots: int
    note: str


def read_spill(spill: Any, devices: Any, placement: Any) -> Spill:
    """The argument `spill` of `vl.load`: None, "auto", or how many experts of every layer are on each device.

    Raises:
        ConfigError: if it is something else, or devices or placement are to be what fits best without it.
    """
    count = whole(spill)
    if spill is None:
        return None
    if (count is None or count < 1) and not (isinstance(spill, str) and spill == AUTO):
        raise ConfigError(
            f"spill={shown(spill)} is not known: give the number of experts of every layer that stay on the device, "
            "or 'auto' for as many as fit"
        )
    for name, value in (("devices", devices), ("placement", placement)):
        if isinstance(value, str) and value == AUTO:
            raise ConfigError(
                f"spill={shown(spill)} is for a model that does not fit, and {name}='auto' chooses of what does: "
                f"say which {name}"
            )
    return AUTO if count is None else count


def place_experts(
    spill: int | str,
    config: VLConfig,
    placed: Placed,
    *,
    name: str,
    format: str | None,
    dtype: torch.dtype,
    engine: EngineConfig,
) -> Spilled | None:
    """How many experts stay on each device. None if all of them do, where that was left open.

    Args:
        spill: as of `read_spill`.
        placed: on which devices the model is, and how it is cut over several.
        format: in which the weights will be; None: as they are in `dtype`.

    Raises:
        ConfigError: if a device has not more experts, or no memory of its own.
        DeviceError: if the host's memory or the device's does not suffice.
    """
    device, ranks, work = placed.devices[0], len(placed.devices), Workload.of(engine)
    count = _here(config, placed)
    if device.type not in ("cuda", "cpu"):
        raise ConfigError(f"spill={spill!r}: {device} has no memory apart from the host's: leave it out")
    if isinstance(spill, str):
        found = _as_many_as_fit(config, format, dtype, placed, work)
        if found is None:
            return None
        spill = found
    if spill >= count:
        raise ConfigError(f"spill={spill} would leave all {count} experts on the device: give 1 to {count - 1}")
    all_of_them = host_bytes(config.text, format, dtype)
    each = all_of_them if placed.placement == CONTEXT else all_of_them // ranks
    there = memory.free(HOST)
    if there is not None and ranks * each > there:
        raise DeviceError(
            f"spill={spill}: the experts of {name} take {memory.gib(ranks * each)} of host memory, and "
            f"{memory.gib(there)} are free: quantise the model further, or use a host with more memory"
        )
    where = str(device) if ranks == 1 else f"each of {ranks} devices"
    note = (
        f"{name}: {spill} of {count} experts of every layer are on {where} at a time "
        f"({memory.gib(each * spill // count)}); all of them are in host memory ({memory.gib(ranks * each)}) and come "
        f"from there when they are chosen. {_speed(config, format, placed, 1 - spill / count, work)}."
    )
    return Spilled(spill, note)


def _here(config: VLConfig, placed: Placed) -> int:
    """Experts of a layer that the device which has most of them has."""
    ranks = len(placed.devices)
    shares = [Layout(config.text, placed.placement, rank, ranks).experts for rank in range(ranks)]
    return max(stop - start for start, stop in shares)


def _speed(config: VLConfig, format: str | None, placed: Placed, away: float, work: Workload) -> str:
    gpu, gpus = gpu_of(placed.devices[0]), _planned_gpus(placed)
    if gpu is None:
        return f"No speed is predicted for {placed.devices[0]}"
    if gpus is None or spilled_placement(config, gpus) is None:
        return f"No speed is predicted for placement {placed.placement!r}"
    rate = tokens_per_second(config, format, gpu, away, work, gpus)
    return f"By `vl plan`, expect {rate:,.{0 if rate >= 20 else 1}f} tokens/s of one answer"


def _planned_gpus(placed: Placed) -> int | None:
    """Over how many GPUs `vl plan` has to cut a model to have one of them right; None if it has none so."""
    gpus = len(placed.devices)
    return 1 if gpus == 1 else {TENSOR: gpus, EXPERT: gpus, CONTEXT: 1}.get(placed.placement)


def away_of(config: VLConfig, format: str | None, available: int, work: Workload, gpus: int = 1) -> float | None:
    """The least part of its experts that each GPU has to leave in host memory, by the arithmetic of `vl plan`.

    Args:
        format: None for 16-bit numbers.
        available: bytes of a GPU that are free.
        gpus: over which every matrix is cut.

    Returns:
        0 if nothing has to be; None if not even all of them is enough.
    """
    form = find_format(format or "bf16")
    gpu = replace(next(iter(known_gpus().values())), memory=available)  # what it computes does not enter
    base, placement = whole_placement(config) if gpus == 1 else by_tensor(config, gpus), spilled_placement(config, gpus)
    assert base is not None
    assert placement is not None
    if consider(base, form, Machine(gpu, gpus), work).memory.fits:
        return 0.0
    option = consider(placement, form, Machine(gpu, gpus), work)
    return option.spilled if option.memory.fits else None


def tokens_per_second(
    config: VLConfig, format: str | None, gpu: Gpu, away: float, work: Workload, gpus: int = 1
) -> float:
    """What `vl plan` predicts of one sequence with such a part of the experts away, each as likely to be chosen."""
    placement = spilled_placement(config, gpus)
    assert placement is not None
    return 1 / Estimate(placement, find_format(format or "bf16"), gpu, away).decode(work.tokens, 1)


def _as_many_as_fit(
    config: VLConfig, format: str | None, dtype: torch.dtype, placed: Placed, work: Workload
) -> int | None:
    device, gpus = placed.devices[0], _planned_gpus(placed)
    if gpus is None or spilled_placement(config, gpus) is None:
        raise ConfigError(
            f"spill='auto' is not reckoned for this model with placement={placed.placement!r} on "
            f"{len(placed.devices)}: give the number of experts that stay on each device"
        )
    available = _available(placed)
    if available is None or dtype.itemsize != 2:
        raise ConfigError(
            "spill='auto' is reckoned for GPUs and 16-bit numbers: give the number of experts that stay on the device"
        )
    away, count = away_of(config, format, available, work, gpus), _here(config, placed)
    if away == 0:
        return None
    slots = 0 if away is None else int((1 - away) * count)
    if slots == 0:
        raise DeviceError(
            f"{device} has {memory.gib(available)} free, which is too little even with one expert of every layer: "
            "quantise the model further, or lower cache_tokens, max_batch_size or prefill_tokens"
        )
    return slots


def _available(placed: Placed) -> int | None:
    """Bytes of each GPU; of one, those that are free. To ask several would leave this process' own context on each."""
    device = placed.devices[0]
    if device.type != "cuda":
        return None
    if len(placed.devices) == 1:
        return memory.free(device)
    gpu = gpu_of(device)
    return None if gpu is None else gpu.memory
