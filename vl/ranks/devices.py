"""Which devices a model is put on, and how it is cut: what `devices=` and `placement=` of `vl.load` ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from text_backbone.parallel import PLACEMENTS, Layout
from vl.config import VLConfig
from vl.engine.config import EngineConfig, shown, whole
from vl.errors import ConfigError, DeviceError
from vl.plan import Machine, Option, Workload, plan
from vl.plan.gpus import gpu_of
from vl.plan.share import CONTEXT, ONE, SPILLED, TENSOR

AUTO = "auto"
EXPERT = "expert"
MOST = 16  # processes of one host
STEP_TIMEOUT = 600.0  # seconds: the first steps compile kernels

Device = int | str | torch.device
Devices = int | str | Sequence[Device] | None  # what `vl.load` takes


@dataclass(frozen=True)
class Placed:
    """Where the parts of a model go. One device: the model is whole, in the caller's process."""

    devices: tuple[torch.device, ...]
    placement: str


@dataclass(frozen=True)
class Asked:
    """What a user asked for, as far as that can be checked without a model.

    Attributes:
        devices: several, or one; None: as many of this host's as are best.
        placement: how to cut a model over several, or "auto".
    """

    devices: tuple[torch.device, ...] | None
    placement: str

    def place(self, config: VLConfig, format: str | None, engine: EngineConfig) -> Placed:
        """Settle what was left open, by `vl.plan`, and check that the model can be cut so.

        Args:
            format: in which the weights will be; None: as 16-bit numbers.

        Raises:
            ConfigError: if the model cannot be cut into so many parts, or nothing is known of this host's GPUs.
            DeviceError: if the model fits on no number of them.
        """
        devices, placement = self.devices, self.placement
        if devices is None or (placement == AUTO and len(devices) > 1):
            counts = range(1, torch.cuda.device_count() + 1) if devices is None else (len(devices),)
            # A plan knows no experts' placement: it takes the memory of tensor's, and its time to within the balance.
            named = None if placement == AUTO else TENSOR if placement == EXPERT else placement
            best = _fastest(config, format or config.quantization or "bf16", engine, counts, named)
            devices = devices or tuple(torch.device("cuda", i) for i in range(best.machine.count))
            placement = best.placement if placement == AUTO else placement
        if len(devices) > 1:
            try:
                Layout(config.text, placement, 0, len(devices))
            except ValueError as error:
                raise ConfigError(f"devices={len(devices)}: {error}") from error
            if placement == CONTEXT and engine.host_cache_tokens:
                raise ConfigError(
                    f"host_cache_tokens={engine.host_cache_tokens} does not go with placement={CONTEXT!r}, of which "
                    "every device attends to pages of its own: leave it out, or use another placement"
                )
        return Placed(devices, placement)


def read_devices(devices: Any, placement: Any, device: torch.device | str | None) -> Asked | None:
    """What the arguments of `vl.load` ask for; None if it is one device, as `device` says.

    Args:
        devices: None, how many, "auto", or a list of devices ("cuda:1", or 1 for short).
        placement: None, "tensor", "expert", "layers", "context" or "auto".
        device: "cpu" makes `devices` processes on the CPU; of GPUs it may say "cuda" only.

    Raises:
        ConfigError: if an argument is something else, or they contradict each other.
        DeviceError: if this host has not so many devices.
    """
    if placement is not None and not (isinstance(placement, str) and placement in (*PLACEMENTS, AUTO)):
        choices = ", ".join(map(repr, (*PLACEMENTS, AUTO)))
        raise ConfigError(f"placement={shown(placement)} is not known: use {choices}")
    if devices is None:
        if placement is not None:
            raise ConfigError(f"placement={placement!r} is how a model is cut over several devices: give devices= too")
        return None
    automatic = isinstance(devices, str) and devices == AUTO
    if automatic and placement == CONTEXT:
        raise ConfigError(
            f"placement={CONTEXT!r} has the whole model on every device, and reads prompts faster but writes no "
            f"faster, which is what devices={AUTO!r} goes by: give a number of devices"
        )
    kind = _kind(device)
    placement = placement or (AUTO if automatic else TENSOR)
    if isinstance(devices, str):
        if devices != AUTO:
            raise ConfigError(
                f"devices={devices!r:.80} is not known: give a number, 'auto' or a list such as ['cuda:0', 'cuda:1']"
            )
        return Asked(None, placement) if kind == "cuda" else Asked((torch.device(kind),), placement)
    count = whole(devices)
    if count is not None:
        return Asked(_first(count, kind), placement)
    if not isinstance(devices, Sequence) or isinstance(devices, bytes):
        raise ConfigError(f"devices={shown(devices)} is not a number, 'auto' or a list of devices")
    if device is not None:
        raise ConfigError(f"devices={shown(devices)} says where the model goes: leave device={str(device)!r} out")
    return Asked(_listed(devices), placement)


def read_timeout(seconds: Any, devices: Any) -> float:
    """The argument `step_timeout` of `vl.load`, in seconds.

    Raises:
        ConfigError: if it is not a number above 0, or no several devices are asked for.
    """
    if seconds is None:
        return STEP_TIMEOUT
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e9:
        raise ConfigError(f"step_timeout={shown(seconds)} is not a number of seconds above 0")
    if devices is None:
        raise ConfigError(
            f"step_timeout={seconds} ends steps of a model over several devices that hang: give devices= too"
        )
    return float(seconds)


def _kind(device: torch.device | str | None) -> str:
    """Of the devices that a number counts."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if str(device) not in ("cuda", "cpu"):
        raise ConfigError(
            f"device={str(device)!r} with devices=: devices are counted of 'cuda' or of 'cpu'; list any others, as in "
            "devices=['cuda:1', 'cuda:2'] without device="
        )
    return str(device)


def _first(count: int, kind: str) -> tuple[torch.device, ...]:
    there = torch.cuda.device_count() if kind == "cuda" else MOST
    if not 1 <= count <= there:
        if kind == "cuda" and count > there:
            hint = f"devices={there} or 'auto'" if there else "device='cpu' for processes on the CPU"
            raise DeviceError(
                f"devices={count}, but PyTorch sees {there} GPU{'s' * (there != 1)} on this host: give {hint}"
            )
        hint = "; for the first GPU alone, give device='cuda:0'" if kind == "cuda" and not count else ""
        raise ConfigError(f"devices={count}: a model is put on 1 to {there} devices{hint}")
    return tuple(torch.device(kind, i) if kind == "cuda" else torch.device(kind) for i in range(count))


def _listed(devices: Sequence[Device]) -> tuple[torch.device, ...]:
    found = []
    for device in devices:
        try:
            number = whole(device)
            place = exact_device(device if number is None else f"cuda:{number}")
        except (RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"devices: {shown(device)} is not a device: write 'cuda:1', or 1 for short") from error
        found.append(place)
    if not 1 <= len(found) <= MOST:
        raise ConfigError(f"devices lists {len(found)}: a model is put on 1 to {MOST} devices")
    if len(found) == 1:
        return tuple(found)
    kinds = sorted({place.type for place in found})
    if kinds not in (["cpu"], ["cuda"]):
        raise ConfigError(
            f"devices are of the kinds {', '.join(kinds)}: a model is put on several GPUs, or CPU processes"
        )
    if kinds == ["cuda"]:
        there = torch.cuda.device_count()
        for i, place in enumerate(found):
            if place.index is None or place in found[:i]:
                raise ConfigError(f"devices names {place} {'twice' if place.index is not None else 'without a number'}")
            if place.index >= there:
                hint = "" if there else ": for processes on the CPU, write 'cpu' for each"
                raise DeviceError(f"devices names {place}, but PyTorch sees {there} GPUs on this host{hint}")
    return tuple(found)


def exact_device(device: Device) -> torch.device:
    """`torch.device`, which takes 256 for 0. Raises what it does, and ValueError for such numbers."""
    place = torch.device(device)
    if isinstance(device, str) and place.index is not None and str(place) != device:
        raise ValueError(f"there is no {device}")
    if isinstance(device, int) and place.index != device:
        raise ValueError(f"there is no device {device}")
    return place


def _fastest(
    config: VLConfig, format: str, engine: EngineConfig, counts: Sequence[int], placement: str | None
) -> Option:
    """What is predicted to write fastest, with as many sequences as the engine runs at once.

    Args:
        counts: of GPUs to choose from. placement: of several; None: any.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            "placement='auto' is predicted for GPUs: name 'tensor', 'expert', 'layers' or 'context' on the CPU"
        )
    first = torch.device("cuda", 0)
    known = gpu_of(first)
    if known is None:
        raise ConfigError(
            f"nothing is known of the speed of {torch.cuda.get_device_name(first)}, so 'auto' cannot choose: give "
            "devices= a number, and placement= a name"
        )
    work = Workload.of(engine)
    options = [
        option
        for count in counts
        for option in plan(config, Machine(known, count), work, (format,)).options
        if option.fits
        and option.placement not in (SPILLED, CONTEXT)  # spill= asks for the one; the other writes no faster than one
        and (placement is None or option.placement in (ONE, placement))
    ]
    if not options:
        raise DeviceError(
            f"this model does not fit on {max(counts)} x {known.name} in {format}, with room for "
            f"{engine.cache_tokens:,} tokens in {engine.max_batch_size} sequences: quantise it further, or lower "
            "cache_tokens or max_batch_size (`vl plan` shows what fits)"
        )
    return min(options, key=lambda option: option.speed.decode if option.speed else 0.0)
