"""What tells models apart: what one has read is of no use to another."""

from __future__ import annotations

import hashlib
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn

from preprocessing import Processor
from vl.config import VLConfig

_SAMPLES = 64  # values of a tensor, evenly spaced


class Whole(Protocol):
    """A model with its weights in this process."""

    @property
    def config(self) -> VLConfig: ...
    @property
    def processor(self) -> Processor: ...
    @property
    def language_model(self) -> nn.Module: ...
    @property
    def vision(self) -> nn.Module | None: ...
    @property
    def dtype(self) -> torch.dtype: ...


def identity(model: Whole) -> dict[str, str]:
    """Traits by name, equal for equal models on whatever device.

    The weights' is of some values of every tensor: it is made in less than a second, and another checkpoint, another
    step of training or an adapter changes it. It is no proof against someone who wants two models to look the same.
    """
    return {
        "config": _digest(repr(model.config)),
        "quantization": model.config.quantization or "none",
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights": _weights(model),
        "tokenizer": _digest(model.processor.tokenizer.backend.to_str()),
        "chat template": _digest(model.processor.template.source),
    }


def differences(saved: dict[str, str], found: dict[str, str]) -> list[str]:
    """The names of the traits that differ, with their values where those say anything."""
    told = []
    for name in sorted(saved.keys() | found.keys()):
        was, now = saved.get(name, "none"), found.get(name, "none")
        if was != now:
            told.append(f"{name} ({was}, now {now})" if name in ("quantization", "dtype") else name)
    return told


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@torch.inference_mode()
def _weights(model: Whole) -> str:
    digest, parts = hashlib.sha256(), [model.language_model, *([] if model.vision is None else [model.vision])]
    for part in parts:
        named = list(chain(part.named_parameters(), part.named_buffers()))
        for name, tensor in named:
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        samples = [_sample(tensor) for _, tensor in named]
        for device in sorted({str(sample.device) for sample in samples}):  # one copy from each
            digest.update(torch.cat([s for s in samples if str(s.device) == device]).cpu().numpy().data)
    return digest.hexdigest()


def _sample(tensor: Tensor) -> Tensor:
    """Some values' bytes: uint8 [n]."""
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().flatten()
    stride = max(1, flat.numel() // _SAMPLES)
    return flat[::stride][: _SAMPLES + 1].contiguous().view(torch.uint8)
