"""How much memory there is, and what the cache takes of it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from preprocessing.container import memory_left
from text_backbone import TextConfig
from text_backbone.cache import bytes_needed, snapshot_bytes
from text_backbone.offload import device_bytes, host_bytes
from text_backbone.shortage import is_exhausted as is_exhausted
from vl.engine.config import EngineConfig
from vl.engine.driven import Model
from vl.errors import ConfigError, DeviceError, InputError

HOST = torch.device("cpu")
MIB = 2**20
_MOST_PLACES = 256
_USABLE = 0.95  # of the free memory; the rest is for the work on what is cached


def total(device: torch.device) -> int | None:
    """Bytes of memory that `device` has; None if that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if device.type == "cpu" else None


def free(device: torch.device) -> int | None:
    """Bytes that may yet be allocated on `device`; None if that cannot be told."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch's, but unused
        return torch.cuda.mem_get_info(device)[0] + idle
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    meminfo = Path("/proc/meminfo")
    if device.type == "cpu" and meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
        allowed = memory_left()
        return available if allowed is None else min(available, allowed)
    return total(device)


def cache_bytes(text: TextConfig, config: EngineConfig, pages: int, dtype: torch.dtype) -> int:
    """Memory of the device that the engine's cache with so many pages takes, those in host memory among them."""
    slots, size, host = config.max_batch_size, config.page_size, config.host_pages
    if host:
        return device_bytes(text, slots=slots, pages=pages - host, host_pages=host, page_size=size, dtype=dtype)
    return bytes_needed(text, slots=slots, pages=pages, page_size=size, dtype=dtype, scratch=True)


def places(text: TextConfig, config: EngineConfig) -> int:
    """Beginnings that may be kept in the host's memory. `text` is of the whole model, also if it is split."""
    each = snapshot_bytes(text)
    return min(_MOST_PLACES, config.prefix_memory * MIB // max(1, each))


def check_prefixes(text: TextConfig, config: EngineConfig) -> None:
    """Raises ConfigError if `prefix_memory` is not 0 and has room for nothing."""
    if config.prefix_memory and not places(text, config):
        needed = -(-snapshot_bytes(text) // MIB)
        raise ConfigError(
            f"prefix_memory={config.prefix_memory} (MiB) is less than the states of one prefix: "
            f"give at least {needed}, or 0 to keep none"
        )


def check_config(model: Model, config: EngineConfig, processes: int = 1) -> None:
    """Refuse a cache that the device, or the host, could not hold.

    Args:
        processes: each of which has such a cache on the same host.

    Raises:
        ConfigError: if it could not even if nothing else were there.
        DeviceError: if too little of the host's memory is free.
    """
    device, text = model.device, model.language_model.config
    needed, there = cache_bytes(text, config, config.pages, model.dtype), total(device)
    if there is not None and needed > there:
        raise ConfigError(
            f"max_batch_size={config.max_batch_size} and cache_tokens={config.cache_tokens} (in pages of "
            f"{config.page_size}) need {gib(needed)} for the cache, but {device} has {gib(there)}: lower them"
        )
    if not config.host_pages:
        return
    if device.type == "mps":
        raise ConfigError(
            f"host_cache_tokens: {device} has no memory apart from the host's; raise cache_tokens instead"
        )
    each = host_bytes(text, host_pages=config.host_pages, page_size=config.page_size, dtype=model.dtype)
    needed = processes * each
    there = total(HOST)
    if there is not None and needed > there:
        raise ConfigError(
            f"host_cache_tokens={config.host_cache_tokens} needs {gib(needed)} of host memory, but the host has "
            f"{gib(there)}: lower it"
        )
    there = free(HOST)
    if there is not None and needed > there:
        raise DeviceError(
            f"host_cache_tokens={config.host_cache_tokens} needs {gib(needed)} of host memory, and {gib(there)} are "
            "free: lower it, or free some"
        )


def room(model: Model, config: EngineConfig, held: int) -> int | None:
    """Tokens that a cache could hold in place of the present one, of `held` bytes; None if that cannot be told."""
    text, there, host = model.language_model.config, free(model.device), config.host_pages
    if there is None:
        return None
    least, page = (cache_bytes(text, config, host + pages, model.dtype) for pages in (0, 1))
    pages = max(0, int(_USABLE * (there + held)) - least) // (page - least)
    return (host + pages) * config.page_size


def check_room(tokens: int | None, device: torch.device, *, prompt: int, new: int) -> None:
    """Raises InputError if a prompt of `prompt` tokens and `new` more are above the `tokens` that there is room for."""
    if tokens is None or prompt + new - 1 <= tokens:
        return
    fix = f"ask for at most {tokens - prompt + 1:,}" if tokens >= prompt else "shorten the prompt"
    raise InputError(
        f"max_new_tokens={new} after a prompt of {prompt:,} tokens cannot be held: "
        f"the memory of {device} has room for {tokens:,} tokens; {fix}"
    )


def exhausted(error: BaseException, device: torch.device, doing: str) -> DeviceError:
    """What to tell of an error that `is_exhausted`."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return DeviceError(
        f"{device} ran out of memory while {doing} ({line}): lower max_new_tokens, or load the model with smaller "
        "prefill_tokens, max_batch_size or cache_tokens"
    )


def gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
