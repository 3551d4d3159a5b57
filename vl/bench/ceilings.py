"""What this machine is, and what it can do at best: the ceilings that floors are computed from."""

from __future__ import annotations

import os
import platform
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from vl.bench.records import Ceilings
from vl.bench.timing import measure

PACKAGES = ("torch", "triton", "timm", "transformers", "fla-core", "flash-linear-attention")


def measure_ceilings(device: torch.device) -> Ceilings:
    """A large copy, and a square matmul in the dtype that is measured with: 8192^3 on a GPU; under two seconds each."""
    gpu = device.type == "cuda"
    source = torch.randint(0, 256, (2**30 if gpu else 2**26,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = measure([partial(target.copy_, source)], device, budget=0.5).seconds
    bandwidth = 2 * source.numel() / copied
    del source, target
    n = 8192 if gpu else 1024
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16 if gpu else torch.float32) for _ in range(2))
    out = torch.empty_like(a)
    multiplied = measure([partial(torch.mm, a, b, out=out)], device, budget=0.5).seconds
    return Ceilings(bandwidth, 2 * n**3 / multiplied)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What figures depend on: the processor, its memory, and the versions of what computes."""
    packages: dict[str, str] = {}
    for package in PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    machine: dict[str, Any] = {"device": str(device), "python": platform.python_version(), "packages": packages}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        return machine | {
            "name": properties.name,
            "capability": [properties.major, properties.minor],
            "memory": total,
            "free": free,
            "cuda": torch.version.cuda,
        }
    return machine | {"name": _processor(), "threads": torch.get_num_threads(), "memory": 0, "free": 0}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} CPUs"
