"""Weights in the released layout: safetensors, whole or sharded, under the released names.

A model is a mapping from released name to a view of its parameter storage. Loading copies each tensor of the files
into its view and saving writes the views, so neither ever holds a second copy of the model.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vl.errors import CheckpointError
from vl.hub import resolve_source
from vl.manifest import DERIVED, INDEX, SINGLE, Header, Problems, compare, read_headers

__all__ = ["load_weights", "resolve_source", "save_weights"]

SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def load_weights(
    tensors: Mapping[str, Tensor], folder: str | Path, *, progress: Callable[[int, int], None] | None = None
) -> None:
    """Copy a checkpoint into a model, tensor by tensor from memory-mapped files, to each view's device and dtype.

    Names, shapes and dtypes are all checked from the files' headers before anything is copied.

    Args:
        tensors: released name to view of parameter storage; exactly these must be in the files.
        folder: holds `model.safetensors`, or an index and its shards.
        progress: called after each tensor with the numbers of values copied and in all.

    Raises:
        CheckpointError: lists what is missing, unexpected, mis-shaped, damaged, of an unsupported dtype, inconsistent
            with the index, or not finite; in the last case alone the model has been written to.
    """
    folder = Path(folder)
    problems = Problems(folder)
    headers = read_headers(folder, problems)
    compare(tensors, headers, problems)
    problems.check()
    done, total = 0, sum(view.numel() for view in tensors.values())
    for file in headers:
        for name, tensor in _read(folder / file, headers[file]):
            view = tensors[name]
            with torch.no_grad():
                view.copy_(tensor)
            if not _finite(view):
                problems.add("NaN or infinite values", "values", name)
            done += view.numel()
            if progress is not None:
                progress(done, total)
    problems.check()


def save_weights(
    tensors: Mapping[str, Tensor],
    folder: str | Path,
    *,
    max_shard_bytes: float = 5e9,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model's tensors: one `model.safetensors` if they fit a shard, else numbered shards and their index.

    Files are written under temporary names and then renamed, the index last, so that an interrupted save leaves
    either the old checkpoint or a folder that does not load, never a mixture. Host memory: one shard.

    Args:
        tensors: released name to tensor, on any device.
        folder: an existing folder; weights of an earlier save in it are replaced.
        max_shard_bytes: size at which a new shard starts; a single larger tensor gets a shard of its own.
        dtype: to store as; by default each tensor's own.

    Raises:
        CheckpointError: if the files cannot be written.
    """
    folder = Path(folder)
    shards = _shards(tensors, max_shard_bytes, dtype)
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in [*names, INDEX]}
    try:
        for name, shard in zip(names, shards, strict=True):
            # Copies: views of one parameter share storage, which the format cannot express.
            copies = {key: _host_copy(tensors[key], dtype) for key in shard}
            temporary[name].touch()
            mode = temporary[name].stat().st_mode
            save_file(copies, temporary[name], metadata={"format": "pt"})
            temporary[name].chmod(mode)  # safetensors makes files that only their owner can read
        if count > 1:
            size = sum(_nbytes(tensor, dtype) for tensor in tensors.values())
            weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
            temporary[INDEX].write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            (folder / INDEX).unlink(missing_ok=True)
            names.append(INDEX)
        for name in names:
            temporary[name].replace(folder / name)
        for stale in [folder / INDEX, folder / SINGLE, *folder.glob("model-*.safetensors")]:
            if stale.name not in names and (stale.name in (INDEX, SINGLE) or SHARD.fullmatch(stale.name)):
                stale.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the weights cannot be written to {folder} ({error}): check space and rights") from error
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def _read(path: Path, header: Header) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file, each a view of the mapped pages."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in header:
                if not DERIVED.search(name):
                    yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): download the file again") from error


def _finite(view: Tensor) -> bool:
    """Whether all values are finite, without a temporary the size of the tensor; extremes carry NaN along."""
    if not view.numel() or view.is_meta:
        return True
    return bool(torch.stack(torch.aminmax(view)).isfinite().all())


def _shards(tensors: Mapping[str, Tensor], limit: float, dtype: torch.dtype | None) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        nbytes = _nbytes(tensor, dtype)
        if shards[-1] and size + nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    return shards


def _nbytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype or tensor.dtype).itemsize


def _host_copy(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    copy = torch.empty(tensor.shape, dtype=dtype or tensor.dtype)
    return copy.copy_(tensor.detach())
