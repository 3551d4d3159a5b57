"""What the files of a checkpoint hold, read from their headers, and whether that is what the model needs."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vl.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = ("BF16", "F16", "F32", "F64")
# Constants that some releases of transformers store: the decay of each head, frequencies, and position counters.
DERIVED = re.compile(r"\.(slope_rate|query_decay|key_decay|diagonal_decay|inv_freq|position_ids)$")
FIXES = {
    "missing": "the checkpoint is incomplete or belongs to another model: download it again or check config.json",
    "damaged": "download the file again",
    "quantised": "load the released bf16 checkpoint: quantised files of other tools are not read",
    "index": "download the index and all files it names again",
    "values": "the weights are damaged, or too large for the dtype asked for: try bfloat16 or float32",
}


@dataclass
class Problems:
    """What is wrong with a checkpoint, all of it, so that one look at the message is enough."""

    folder: Path
    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    fixes: dict[str, None] = field(default_factory=dict)

    def add(self, kind: str, fix: str, *items: str) -> None:
        if items:
            self.found[kind] += items
            self.fixes[FIXES[fix]] = None

    def check(self) -> None:
        """Raise CheckpointError if there is any."""
        if not self.found:
            return
        lines = [f"{self.folder} cannot be loaded:"]
        for kind, items in self.found.items():
            more = f" and {len(items) - 5} more" if len(items) > 5 else ""
            lines.append(f"  {kind} ({len(items)}): {', '.join(items[:5])}{more}")
        raise CheckpointError("\n".join([*lines, *(f"  fix: {fix}" for fix in self.fixes)]))


# name -> (dtype, shape), as a file's header says
Header = dict[str, tuple[str, tuple[int, ...]]]


def read_headers(folder: Path, problems: Problems) -> dict[str, Header]:
    """The headers of the checkpoint's files, held to the index when there is one."""
    if (folder / SINGLE).exists():
        return {SINGLE: _header(folder / SINGLE, problems)}
    if not (folder / INDEX).exists():
        raise CheckpointError(_no_weights(folder))
    weight_map = _weight_map(folder / INDEX)
    listed: dict[str, set[str]] = defaultdict(set)
    for name, file in weight_map.items():
        listed[file].add(name)
    headers = {}
    for file in sorted(listed):
        if not (folder / file).is_file():
            problems.add("files that the index names and that are missing", "index", file)
            continue
        header = headers[file] = _header(folder / file, problems)
        if header:
            problems.add(f"tensors that the index expects in {file}", "index", *sorted(listed[file] - header.keys()))
            problems.add(
                f"tensors of {file} that the index does not list", "index", *sorted(header.keys() - listed[file])
            )
    return headers


def _no_weights(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no folder {folder}: check the path"
    if any(folder.glob("model-*.safetensors")):
        return f"{folder} has shards but no {INDEX}: download it too"
    if any(any(folder.glob(pattern)) for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt")):
        return (
            f"{folder} has pickled weights only, and pickle is never read because it can run code: "
            "convert them to safetensors"
        )
    return f"{folder} has neither {SINGLE} nor {INDEX}: give the folder of a checkpoint in the released layout"


def _weight_map(path: Path) -> dict[str, str]:
    try:
        weight_map: Any = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a safetensors index ({error!r}): download it again") from error
    names = weight_map.values() if isinstance(weight_map, dict) else [None]
    if not all(isinstance(file, str) and file == Path(file).name for file in names):
        raise CheckpointError(f"{path}: weight_map must map tensor names to plain file names: download it again")
    return dict(weight_map)


def _header(path: Path, problems: Problems) -> Header:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
            return {name: (piece.get_dtype(), tuple(piece.get_shape())) for name, piece in slices.items()}
    except (SafetensorError, OSError) as error:
        problems.add("unreadable files", "damaged", f"{path.name} ({error})")
        return {}


def compare(tensors: Mapping[str, Tensor], headers: Mapping[str, Header], problems: Problems) -> None:
    found = {name: entry for header in headers.values() for name, entry in header.items() if not DERIVED.search(name)}
    problems.add("missing tensors", "missing", *(name for name in tensors if name not in found))
    problems.add("unexpected tensors", "missing", *(name for name in found if name not in tensors))
    for name, (dtype, shape) in found.items():
        if name in tensors and shape != tuple(tensors[name].shape):
            wanted = list(tensors[name].shape)
            problems.add("tensors of the wrong shape", "missing", f"{name} {list(shape)} instead of {wanted}")
        if dtype not in DTYPES:
            problems.add("tensors of an unsupported dtype", "quantised", f"{name} {dtype}")
