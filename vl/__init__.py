"""minimax-vl: a vision-language toolkit around MiniMax-VL-01.

    import vl
    model = vl.load("nano")
    print(model.caption("photo.jpg"))

The names below are imported on first use, so that `import vl` and `vl --help` do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preprocessing import Inputs, ToolCall
    from vl.config import VLConfig
    from vl.engine import Generation, Reading, SamplingParams, Session, Timings, TokenLogprob, Usage
    from vl.errors import CheckpointError, ConfigError, DeviceError, Error, ImageError, InputError, TrainingError
    from vl.jobs import caption_images
    from vl.loading import load
    from vl.model import DEFAULT_PROMPT, MiniMaxVL

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_PROMPT",
    "CheckpointError",
    "ConfigError",
    "DeviceError",
    "Error",
    "Generation",
    "ImageError",
    "InputError",
    "Inputs",
    "MiniMaxVL",
    "Reading",
    "SamplingParams",
    "Session",
    "Timings",
    "TokenLogprob",
    "ToolCall",
    "TrainingError",
    "Usage",
    "VLConfig",
    "caption_images",
    "load",
]

_HOMES = {
    "preprocessing": ("Inputs", "ToolCall"),
    "vl.config": ("VLConfig",),
    "vl.engine": ("Generation", "Reading", "SamplingParams", "Session", "Timings", "TokenLogprob", "Usage"),
    "vl.errors": (
        "CheckpointError",
        "ConfigError",
        "DeviceError",
        "Error",
        "ImageError",
        "InputError",
        "TrainingError",
    ),
    "vl.jobs": ("caption_images",),
    "vl.loading": ("load",),
    "vl.model": ("DEFAULT_PROMPT", "MiniMaxVL"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'vl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
