"""From the released weights to a quantised checkpoint, file by file; what was finished before is not done again.

Every file of weights becomes one of the same name. It appears under that name when it is whole, and `config.json`,
without which nothing loads, appears last.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from text_backbone.quantization.files import is_quantised, packed
from text_backbone.quantization.finite import check
from vl.config import read_config
from vl.engine.config import shown, whole
from vl.errors import CheckpointError, ConfigError
from vl.files import drafts, locked, replace_file, write_file
from vl.hub import FILES, resolve_source
from vl.loading import open_folder, pick_device
from vl.manifest import Header, Layout, Manifest, Problems, read_header, stored_layout
from vl.quantization import FORMATS, stored_to_json
from vl.reading import Buffer, read_tensors
from vl.saving import CONFIG, INDEX, target_path
from vl.threads import merged

_ORIGIN = "converted_from"  # in a file's metadata: a digest of what it was made of
_METADATA = "__metadata__"  # its key in a file's header
_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}


@dataclass(frozen=True)
class Conversion:
    """What there is to do. `finished` are the names of files that an earlier run wrote, `left` of those to write."""

    manifest: Manifest
    target: Path
    format: str
    finished: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def bytes_left(self) -> int:
        """Bytes of weights to read."""
        headers = (self.manifest.files[file] for file in self.left)
        return sum(math.prod(shape) * _BYTES[dtype] for header in headers for dtype, shape in header.values())


def plan_conversion(source: str | os.PathLike[str], target: str | os.PathLike[str], quantization: str) -> Conversion:
    """Look at both folders; the target is made if need be.

    Args:
        source: as of `vl.load`, not quantised.
        target: an empty folder, or what a conversion of the same files to the same format left behind. Files of weights
            that no conversion wrote, or one to another format, are left alone.
        quantization: "int8", "fp8" or "nf4".

    Raises:
        CheckpointError, ConfigError, InputError: if the source is not a checkpoint that can be loaded and converted, or
            the target is taken.
    """
    if quantization not in FORMATS:
        raise ConfigError(f"quantization={quantization!r:.100} is not known: use {', '.join(map(repr, FORMATS))}")
    folder = resolve_source(source)
    config, place = read_config(folder), target_path(target)
    if config.quantization is not None:
        raise ConfigError(f"{folder} is quantised to {config.quantization} already: convert the released bf16 weights")
    manifest = open_folder(folder, config).manifest  # what could not be loaded is not converted either
    try:
        for header in manifest.files.values():
            _layout(header, quantization)  # says whether there is one
        place.mkdir(parents=True, exist_ok=True)
        if not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        finished = _finished(manifest, place, quantization)
    except OSError as error:
        raise CheckpointError(f"{place} cannot be written ({error}): check the path and its permissions") from error
    except ValueError as error:
        raise ConfigError(f"{folder} cannot be quantised to {quantization}: {error}") from error
    left = tuple(file for file in manifest.files if file not in finished)
    return Conversion(manifest, place, quantization, finished, left)


def convert(
    conversion: Conversion,
    *,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Quantise what is left, and make the folder a checkpoint. Host memory: a file of quantised weights a thread.

    Args:
        conversion: of `plan_conversion`.
        device: where to quantise.
        threads: files at once; by default as many as there are CPUs, and at most 8.
        progress: called with the bytes read so far and those of all files that were left.

    Returns:
        the target folder.

    Raises:
        CheckpointError: if a file cannot be read or written, or changes meanwhile, a value is not finite, or another
            conversion is at work in the folder. What is finished stays.
        ConfigError, DeviceError: if there are no such threads, or no such device.
    """
    count = None if threads is None else whole(threads)
    if threads is not None and (count is None or count < 1):
        raise ConfigError(f"threads={shown(threads)} is not a number of files from 1 on")
    place = pick_device(device)
    try:
        with locked(conversion.target, wait=False):
            _run(conversion, place, count, progress)
    except BlockingIOError:
        raise CheckpointError(
            f"{conversion.target} is being written by another conversion: wait until it ends, or give another folder"
        ) from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{conversion.target} cannot be written ({error}): check free space and permissions, then convert again; "
            "finished files are kept"
        ) from error
    return conversion.target


def _run(
    conversion: Conversion, device: torch.device, threads: int | None, progress: Callable[[int, int], None] | None
) -> None:
    """All that is left, in a folder where nobody else is at work; it is looked at again, for somebody may have been."""
    finished = _finished(conversion.manifest, conversion.target, conversion.format)
    left = tuple(file for file in conversion.manifest.files if file not in finished)
    conversion = replace(conversion, finished=finished, left=left)
    for draft in drafts(conversion.target):
        draft.unlink(missing_ok=True)
    done, total = 0, conversion.bytes_left
    for size in merged(lambda file: _convert_file(conversion, file, device), left, threads):
        done += size
        if progress is not None:
            progress(done, total)
    _finish(conversion)


def _convert_file(conversion: Conversion, file: str, device: torch.device) -> Iterator[int]:
    """Quantise one file; yields the bytes of each tensor when it is done."""
    manifest, problems = conversion.manifest, Problems(conversion.manifest.folder)
    origin = _origin(manifest.folder / file)
    tensors: dict[str, Tensor] = {}
    for name, tensor in read_tensors(manifest.folder / file, manifest.files[file], Buffer()):
        try:
            if is_quantised(name):
                parts = packed(tensor.to(device), conversion.format)
                tensors |= {name + suffix: part.cpu() for suffix, part in parts.items()}
            else:
                check(tensor, torch.float32)  # in which those that are quantised must be finite, too
                tensors[name] = tensor.clone()  # the buffer is used again
        except ValueError as error:
            problems.add(str(error), "values", name)
            problems.check()
        yield tensor.nbytes
    if _origin(manifest.folder / file) != origin:
        raise CheckpointError(f"{manifest.folder / file} changed while it was read: convert again when it is whole")
    with replace_file(conversion.target / file) as draft:
        save_file(tensors, draft, metadata={"format": "pt", _ORIGIN: origin})
        _sort_metadata(draft)


def _sort_metadata(path: Path) -> None:
    """Gives the metadata, which safetensors writes in any order, one: equal conversions are equal files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header[_METADATA] = dict(sorted(header[_METADATA].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def _finished(manifest: Manifest, target: Path, quantization: str) -> tuple[str, ...]:
    """Names of the files that the target has. Raises CheckpointError if it holds what is of no such conversion."""
    if (target / CONFIG).exists():
        raise CheckpointError(f"{target} holds a model already: give another folder, or delete it first")
    return tuple(file for file in manifest.files if _is_finished(manifest, file, target, quantization))


def _is_finished(manifest: Manifest, file: str, target: Path, quantization: str) -> bool:
    """Whether the target has this file, whole and made of the very file in the source."""
    path = target / file
    try:
        origin, header = _read_origin(path), read_header(path)
    except (FileNotFoundError, SafetensorError):  # absent, or cut short
        return False
    if origin is None:
        raise CheckpointError(f"{path} was not written by a conversion: give another folder, or move that file away")
    formats = [form for form in FORMATS if _fits(header, manifest.files[file], form)]
    if formats and quantization not in formats:
        raise CheckpointError(
            f"{target} holds files of an unfinished conversion to {formats[0]}: finish that, give another folder, or "
            "delete it first"
        )
    return bool(formats) and origin == _origin(manifest.folder / file)


def _read_origin(path: Path) -> str | None:
    """What a file that a conversion wrote was made of; None for other files."""
    with safe_open(path, framework="pt") as opened:
        return (opened.metadata() or {}).get(_ORIGIN)


def _was_converted(path: Path) -> bool:
    try:
        return _read_origin(path) is not None
    except (OSError, SafetensorError):
        return False


def _fits(header: Header, source: Header, quantization: str) -> bool:
    """Whether a file has what is made of a source in this format."""
    try:
        wanted = _layout(source, quantization)
    except ValueError:
        return False
    return header.keys() == wanted.keys() and all(
        dtype in wanted[name][0] and wanted[name][1] in (None, shape) for name, (dtype, shape) in header.items()
    )


def _layout(header: Header, quantization: str) -> Layout:
    shapes = ((name, shape) for name, (_, shape) in header.items())
    return {name: part for _, layout in stored_layout(shapes, quantization) for name, part in layout.items()}


def _origin(path: Path) -> str:
    """A digest of a file's header, size and time of change: what makes it another file than one of the same layout."""
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    status = path.stat()
    return hashlib.sha256(header + f"{status.st_size} {status.st_mtime_ns}".encode()).hexdigest()


def _finish(conversion: Conversion) -> None:
    """The files beside the weights: the index, what belongs to the processor, and the config, which comes last."""
    folder, target = conversion.manifest.folder, conversion.target
    for path in target.glob("*.safetensors"):
        if path.name not in conversion.manifest.files and _was_converted(path):
            path.unlink()  # of a source that was cut into other files then
    if len(conversion.manifest.files) > 1:
        names: dict[str, str] = {}
        size = 0
        for file in conversion.manifest.files:
            names |= dict.fromkeys(read_header(target / file), file)
            size += (target / file).stat().st_size
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(names.items()))}
        write_file(target / INDEX, json.dumps(index, indent=2) + "\n")
    else:
        (target / INDEX).unlink(missing_ok=True)
    for path in {path for pattern in FILES for path in folder.glob(pattern)}:
        if path.suffix != ".safetensors" and path.name not in (CONFIG, INDEX):
            with replace_file(target / path.name) as draft:
                shutil.copyfile(path, draft)
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8-sig"))
    config["quantization_config"] = stored_to_json(conversion.format)
    write_file(target / CONFIG, json.dumps(config, indent=2) + "\n")
