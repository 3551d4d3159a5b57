"""GPUs and machines, from the data in `gpus.toml`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vl.engine.config import shown, whole
from vl.errors import ConfigError

if TYPE_CHECKING:
    import torch

DATA = Path(__file__).with_name("gpus.toml")
GIB = 2**30
MOST_GPUS = 16  # of one host
HOW_TO_DESCRIBE = "--gpu-memory GIB --gpu-bandwidth TB/S --gpu-bf16 TFLOP/S describe any other"


@dataclass(frozen=True, slots=True)
class Link:
    """What joins the GPUs of a host. `latency`: seconds of a small all-reduce; `bandwidth`: bytes/s of a large one."""

    latency: float
    bandwidth: float


@dataclass(frozen=True, slots=True)
class Gpu:
    """A kind of GPU.

    Attributes:
        memory: bytes that the driver offers.
        bandwidth: bytes/s of its memory that a copy reaches, read and written.
        bf16, fp8: operations/s that a large matrix product reaches; fp8 is None where there is none.
        link: to the other GPUs of its host.
        host_bandwidth: bytes/s from pinned host memory.
        measured: whether bandwidth and bf16 were measured, rather than scaled from its data sheet.
    """

    name: str
    memory: int
    bandwidth: float
    bf16: float
    fp8: float | None
    link: Link
    host_bandwidth: float
    measured: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """`count` GPUs of one kind in one host. `host_memory`: bytes that may be taken there; None: as many as needed.

    Raises:
        ConfigError: if there are not 1 to 16 GPUs, or the memory is not a number of bytes.
    """

    gpu: Gpu
    count: int = 1
    host_memory: int | None = None

    def __post_init__(self) -> None:
        count, memory = whole(self.count), None if self.host_memory is None else whole(self.host_memory)
        if count is None or not 1 <= count <= MOST_GPUS:
            raise ConfigError(f"{shown(self.count)} GPUs: a plan is for 1 to {MOST_GPUS} GPUs of one host")
        if self.host_memory is not None and (memory is None or memory < 0):
            raise ConfigError(f"host_memory={shown(self.host_memory)} is not a number of bytes, nor None")

    @property
    def name(self) -> str:
        return f"{self.count} x {self.gpu.name}"


@cache
def known_gpus() -> dict[str, Gpu]:
    """Every GPU of `gpus.toml` by its name."""
    data = tomllib.loads(DATA.read_text(encoding="utf-8"))
    bandwidth, rate = _shares(data["gpus"].values())
    return {name: _gpu(name, entry, data, bandwidth, rate) for name, entry in data["gpus"].items()}


def find_gpu(name: str) -> Gpu:
    """The GPU of this name, in any case, with or without what follows a dash where one GPU alone begins so.

    Raises:
        ConfigError: if there is none, or several; lists those known.
    """
    known, wanted = known_gpus(), _plain(name)
    exact = [gpu for gpu in known.values() if wanted in (_plain(gpu.name), _plain(gpu.name).removeprefix("rtx"))]
    begin = exact or [gpu for gpu in known.values() if wanted and _plain(gpu.name).startswith(wanted)]
    if len(begin) == 1:
        return begin[0]
    which = f"may be {', '.join(gpu.name for gpu in begin)}" if begin else "is not known"
    raise ConfigError(f"GPU {name!r} {which}: known are {', '.join(known)}; {HOW_TO_DESCRIBE}")


def recognise_gpu(name: str, memory: int) -> Gpu | None:
    """The GPU that a driver calls `name` ("NVIDIA H100 80GB HBM3") and gives `memory` bytes; None for others."""
    words = set(re.split(r"[\s-]+", name.lower()))
    alike = [
        (len(wanted), known)
        for known in known_gpus().values()
        if (wanted := {word for word in known.name.lower().split("-") if not word.endswith("gb")}) <= words
        and abs(memory - known.memory) < 0.05 * known.memory
    ]
    return max(alike, key=lambda found: found[0], default=(0, None))[1]


def gpu_of(device: torch.device) -> Gpu | None:
    """The GPU that a device of this host is; None for others, and for those of which nothing is known."""
    if device.type != "cuda":
        return None
    import torch

    seen = torch.cuda.get_device_properties(device)
    return recognise_gpu(seen.name, seen.total_memory)


def describe_gpu(
    name: str, *, memory: float | None = None, bandwidth: float | None = None, bf16: float | None = None
) -> Gpu:
    """The GPU `name` with what is given instead of what is known of it; one that is not known needs all three.

    Args:
        memory: GiB that the driver offers. bandwidth: TB/s, and bf16: dense TFLOP/s, by the data sheet.

    Raises:
        ConfigError: if a number is not above 0, or the GPU is not known and one is missing.
    """
    given = {"memory": memory, "bandwidth": bandwidth, "bf16": bf16}
    for key, value in given.items():
        if value is not None and not 0 < value < 1e6:
            raise ConfigError(f"--gpu-{key} must be above 0 and below 1,000,000, not {value:g}")
    changed = {key: value for key, value in given.items() if value is not None}
    if not changed:
        return find_gpu(name)
    data = tomllib.loads(DATA.read_text(encoding="utf-8"))
    entry: dict[str, Any] = {"link": "pcie4", "host": "pcie4"}
    if len(changed) < len(given):
        entry = dict(data["gpus"][find_gpu(name).name])
        if "bandwidth" in changed or "bf16" in changed:
            entry.pop("measured", None)
    return _gpu(name, entry | changed, data, *_shares(data["gpus"].values()))


def parse_machine(text: str) -> tuple[int, str]:
    """Count and name of `8xH100-80GB`, `8 x H100-80GB` or `H200`. Raises ConfigError for anything else."""
    match = re.fullmatch(r"\s*(?:(\d{1,6})\s*[x*×]\s*)?([A-Za-z0-9][\w .-]*?)\s*", text)
    if not match:
        raise ConfigError(f"{text!r} names no GPUs: write 8xH100-80GB, or H200 for one")
    return int(match[1] or 1), match[2]


def _gpu(name: str, entry: Mapping[str, Any], data: Mapping[str, Any], bandwidth: float, rate: float) -> Gpu:
    """`bandwidth` and `rate`: the shares of a data sheet that are reached."""
    measured = entry.get("measured", {})
    link, fp8 = data["links"][entry["link"]], entry.get("fp8")
    return Gpu(
        name=name,
        memory=int(entry["memory"] * GIB),
        bandwidth=measured.get("bandwidth", entry["bandwidth"] * bandwidth) * 1e12,
        bf16=measured.get("bf16", entry["bf16"] * rate) * 1e12,
        fp8=None if fp8 is None else fp8 * rate * 1e12,
        link=Link(link["latency"] * 1e-6, link["bandwidth"] * 1e9),
        host_bandwidth=data["hosts"][entry["host"]]["bandwidth"] * 1e9,
        measured=bool(measured),
    )


def _shares(entries: Any) -> tuple[float, float]:
    """Of the data sheets' bandwidth and bf16 rate, what the measured GPUs reach, on average."""
    seen = [entry for entry in entries if "measured" in entry]
    bandwidth = sum(entry["measured"]["bandwidth"] / entry["bandwidth"] for entry in seen) / len(seen)
    return bandwidth, sum(entry["measured"]["bf16"] / entry["bf16"] for entry in seen) / len(seen)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
