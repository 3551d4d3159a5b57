"""Generation: requests share packed forward passes over one hybrid cache.

The names below are imported on first use, so that what reads a config alone does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vl.engine.asynchronous import AsyncEngine, Delta
    from vl.engine.config import EngineConfig
    from vl.engine.driven import TextStream
    from vl.engine.engine import Engine
    from vl.engine.params import SamplingParams
    from vl.engine.reading import Reading
    from vl.engine.request import Request
    from vl.engine.results import FinishReason, Generation, Timings, TokenLogprob, Usage
    from vl.engine.session import Session

__all__ = [
    "AsyncEngine",
    "Delta",
    "Engine",
    "EngineConfig",
    "FinishReason",
    "Generation",
    "Reading",
    "Request",
    "SamplingParams",
    "Session",
    "TextStream",
    "Timings",
    "TokenLogprob",
    "Usage",
]

_HOMES = {
    "asynchronous": ("AsyncEngine", "Delta"),
    "config": ("EngineConfig",),
    "driven": ("TextStream",),
    "engine": ("Engine",),
    "reading": ("Reading",),
    "request": ("Request",),
    "results": ("FinishReason", "Generation", "Timings", "TokenLogprob", "Usage"),
    "params": ("SamplingParams",),
    "session": ("Session",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"vl.engine.{module}"), name)
    raise AttributeError(f"module 'vl.engine' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
