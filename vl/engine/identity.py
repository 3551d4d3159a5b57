"""What tells models apart: what one has read is of no use to another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn

from preprocessing import Processor
from vl.config import VLConfig

_SAMPLES = 64  # values of a tensor, evenly spaced


class Model(Protocol):
    @property
    def config(self) -> VLConfig: ...
    @property
    def processor(self) -> Processor: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def weights_digest(self) -> str: ...


@dataclass(frozen=True)
class Sample:
    """A tensor of a part of a model, and the bytes of its values that `sampled` numbers."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: bytes


@dataclass(frozen=True)
class Origin:
    """Where a model's weights are from, and what tells whether they are still what was read.

    Attributes:
        files: the `vl.fingerprint` of the files.
        weights: the `weights_digest` when they had been read; None: they cannot be changed.
        writes: by address, how often each tensor had been written to.
    """

    files: str
    weights: str | None = None
    writes: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, files: str, model: Model, parts: nn.Module) -> Origin:
        """To be made when `model` has been loaded; its tensors are those of `parts`. It takes as long as `identity`."""
        return cls(files, model.weights_digest(), _writes(parts))

    def fingerprint(self, model: Model, parts: nn.Module) -> str:
        """`files`, or of weights that were trained, adapted or written to since, what tells them from those.

        Moving them to another device is no change. Of a tensor that was moved, and of writes to its `.data`, only those
        to the values that the digest is of are seen.
        """
        if self.weights is None:
            return self.files
        now, writes = model.weights_digest(), _writes(parts)
        written = any(writes.get(address, count) != count for address, count in self.writes.items())
        return f"changed {now[:16]}" if written or now != self.weights else self.files


def _writes(parts: nn.Module) -> dict[int, int]:
    counted = (tensor for _, tensor in tensors(parts) if not tensor.is_inference())
    return {tensor.data_ptr(): tensor._version for tensor in counted}


def identity(model: Model) -> dict[str, str]:
    """Traits by name, equal for equal models on whatever device, or devices.

    The weights' is of some values of every tensor: it is made in less than a second, and another checkpoint, another
    step of training or an adapter changes it. It is no proof against someone who wants two models to look the same.
    """
    return {
        "config": _digest(repr(model.config)),
        "quantization": model.config.quantization or "none",
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights": model.weights_digest(),
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


def digest(parts: Iterable[Sequence[Sample]]) -> str:
    """Of the tensors of a model's parts."""
    found = hashlib.sha256()
    for samples in parts:
        for sample in samples:
            found.update(f"{sample.name} {sample.shape} {sample.dtype}".encode())
        for sample in samples:
            found.update(sample.values)
    return found.hexdigest()


def tensors(part: nn.Module) -> list[tuple[str, Tensor]]:
    return list(chain(part.named_parameters(), part.named_buffers()))


def sampled(size: int) -> range:
    """Numbers of the values of a tensor of so many that count, flat."""
    return range(0, size, max(1, size // _SAMPLES))[: _SAMPLES + 1]


@torch.inference_mode()
def samples(part: nn.Module) -> list[Sample]:
    """Of a part of a model that is whole here."""
    named = tensors(part)
    values = on_host([_sample(tensor) for _, tensor in named])
    return [Sample(name, tuple(t.shape), t.dtype, each) for (name, t), each in zip(named, values, strict=True)]


def on_host(values: Sequence[Tensor]) -> list[bytes]:
    """The bytes of contiguous tensors, by one copy from each device."""
    found: dict[int, bytes] = {}
    for device in {tensor.device for tensor in values}:
        those = [i for i, tensor in enumerate(values) if tensor.device == device]
        data, start = torch.cat([values[i].flatten().view(torch.uint8) for i in those]).cpu().numpy().tobytes(), 0
        for i in those:
            found[i] = data[start : start + values[i].nbytes]
            start += values[i].nbytes
    return [found[i] for i in range(len(values))]


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().flatten()
    which = sampled(flat.numel())
    return flat[:: which.step][: len(which)].contiguous()
