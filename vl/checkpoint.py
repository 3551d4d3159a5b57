"""Weights in the released layout: safetensors, whole or sharded, under the released names.

A model is a mapping from released name to slot. Loading gives each slot the tensor of the files and saving asks it for
one, so neither ever holds a second copy of the model.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from text_backbone import MiniMaxText
from text_backbone.quantization import Quantized, format_of
from text_backbone.quantization.files import stored_slots
from vl.config import VLConfig
from vl.errors import CheckpointError, ConfigError, DeviceError, InputError
from vl.files import replace_file, write_file
from vl.manifest import SINGLE, Manifest, Problems
from vl.reading import Buffer, read_tensors
from vl.saving import INDEX
from vl.threads import merged

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


class Slot(Protocol):
    """A place for one tensor of a checkpoint, however the model stores it: plain, packed, or a part of it.

    `text_backbone.Slot` and `vision_encoder.Slot` are such places; they say what the members do.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    def load(self, tensor: Tensor, /) -> None: ...
    def read(self) -> Tensor: ...
    @property
    def exact(self) -> bool: ...
    @property
    def room(self) -> Tensor | None: ...


def load_weights(
    slots: Mapping[str, Slot],
    manifest: Manifest,
    *,
    pin: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Give a checkpoint to a model, tensor by tensor, several files at once.

    Host memory: a tensor for each of these files, where they are not read to where they are kept; and matrices that the
    files hold quantised and the model does not.

    Args:
        slots: released name to slot.
        manifest: of files that hold exactly these tensors.
        pin: read to pinned memory, for slots on a GPU.
        progress: called in this thread after each tensor with the numbers of values loaded and in all.

    Raises:
        CheckpointError: if a file cannot be read, or values are not finite; the model has then been written to.
    """
    packed = {name: _packed(manifest, slots[name].shape) for name in manifest.unpacked}
    parts = ((name, stored_slots(weight, ()).items()) for name, weight in packed.items())
    places = {**slots, **{name + suffix: slot for name, part in parts for suffix, slot in part}}
    own = threading.local()  # a thread has one file at a time

    def load(file: str) -> Iterator[tuple[str, int, str | None]]:
        if not hasattr(own, "buffer"):
            own.buffer = Buffer(pin)
        header = manifest.files[file]
        for name, tensor in read_tensors(manifest.folder / file, header, own.buffer, lambda name: places[name].room):
            wrong = None
            try:
                places[name].load(tensor)
            except ValueError as error:
                wrong = str(error)
            yield name, tensor.numel(), wrong

    problems = Problems(manifest.folder)
    done, total = 0, sum(math.prod(shape) for header in manifest.files.values() for _, shape in header.values())
    for name, values, wrong in merged(load, list(manifest.files)):
        if wrong is not None:
            problems.add(wrong, "values", name)
        done += values
        if progress is not None:
            progress(done, total)
    problems.check()
    for name, weight in packed.items():
        try:
            slots[name].load(weight.read())
        except ValueError as error:
            problems.add(str(error), "values", name)
    problems.check()


def check_range(model: nn.Module, folder: Path) -> None:
    """Raises CheckpointError if matrices that were read quantised hold values that are not finite in their dtype."""
    problems = Problems(folder)
    for name, module in model.named_modules():
        if isinstance(module, Quantized):
            try:
                module.check()
            except ValueError as error:
                problems.add(str(error), "values", name)
    problems.check()


def _packed(manifest: Manifest, shape: tuple[int, ...]) -> Quantized:
    """Room on the host for a quantised matrix of the files that the model has in full."""
    assert manifest.format is not None
    return Quantized(manifest.format, (), *shape, device="cpu", dtype=torch.float32)


def write_weights(
    slots: Mapping[str, Slot],
    folder: Path,
    *,
    max_shard_bytes: float = 5e9,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model's tensors: one `model.safetensors` if they fit a shard, else numbered shards and their index.

    Host memory: one shard.

    Args:
        slots: released name to slot, on any device.
        folder: without weights; see `vl.saving.replace_model`.
        max_shard_bytes: size at which a new shard starts; a single larger tensor gets a shard of its own.
        dtype: to store as, but for tensors that are exact; by default each tensor's own.

    Raises:
        CheckpointError: if values are not finite as they are stored.
        InputError: if `max_shard_bytes` is no number above 0.
        OSError, SafetensorError: if the files cannot be written.
    """
    if not isinstance(max_shard_bytes, int | float) or not max_shard_bytes > 0:
        raise InputError(f"max_shard_bytes must be a number above 0, not {max_shard_bytes!r:.100}")
    written: list[list[str]] = []
    size = 0
    for shard in _shards(slots, max_shard_bytes, dtype):
        with replace_file(folder / f"{len(written)}") as draft:
            save_file(shard, draft, metadata={"format": "pt"})
        written.append(list(shard))
        size += sum(tensor.nbytes for tensor in shard.values())
    count = len(written)
    names = [SINGLE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for i, name in enumerate(names):
        (folder / f"{i}").rename(folder / name)
    if count > 1:
        weight_map = {key: name for name, shard in zip(names, written, strict=True) for key in shard}
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        write_file(folder / INDEX, json.dumps(index, indent=2) + "\n")


def stored_config(config: VLConfig, backbone: MiniMaxText) -> VLConfig:
    """The config of a model's files: with the format that its matrices are in by now, whoever quantised them.

    Raises:
        ConfigError: if they are in several.
    """
    try:
        return replace(config, quantization=format_of(backbone))
    except ValueError as error:
        raise ConfigError(f"such a model is not saved: {error}") from error


def weight_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The dtype, also by its name, in which weights may be held or stored. Raises DeviceError for any other."""
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or chosen not in DTYPES.values():
        raise DeviceError(f"dtype {dtype!r:.100} cannot hold the weights: use one of {', '.join(DTYPES)}")
    return chosen


def _shards(slots: Mapping[str, Slot], limit: float, dtype: torch.dtype | None) -> Iterator[dict[str, Tensor]]:
    """Copies on the host, a shard at a time: views of one parameter share storage, which the format cannot express."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, slot in slots.items():
        tensor = slot.read().detach()
        copy = torch.empty(tensor.shape, dtype=tensor.dtype if slot.exact else dtype or tensor.dtype)
        if shard and size + copy.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = copy.copy_(tensor)
        size += copy.nbytes
        if not slot.exact and copy.numel() and not torch.stack(torch.aminmax(copy)).isfinite().all():
            raise CheckpointError(f"{name} has NaN or infinite values in {copy.dtype}: no such model is saved")
    yield shard
