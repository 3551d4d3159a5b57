"""What the files of a checkpoint hold, read from their headers, and whether that is what the model needs."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

import text_backbone
import vision_encoder
from text_backbone.quantization.files import is_quantised, stored_parts
from vl.config import VLConfig
from vl.errors import CheckpointError
from vl.saving import INDEX

SINGLE = "model.safetensors"
DTYPES = ("BF16", "F16", "F32", "F64")
SCALES = {"nf4": ".absmax", "int8": "_scale"}  # what the name of a quantised matrix' scales has more
Shape = tuple[int, ...]
# What older files hold beside the weights: the decay of each head, frequencies and tables of the rotary embedding,
# position counters, and CLIP's last norm, which the features that this family takes do not pass.
UNUSED = re.compile(
    r"(\.|^)(slope_rate|query_decay|key_decay|diagonal_decay|inv_freq|position_ids|rotary_emb\.[^.]+)$"
    r"|^vision_tower\.vision_model\.post_layernorm\.(weight|bias)$"
)
# Missing tensors beyond which a comparison ends: a config may describe more than memory holds the names of.
MANY = 10_000
FIXES = {
    "missing": "the checkpoint is incomplete or belongs to another model: download it again or check config.json",
    "damaged": "download the file again",
    "quantised": "load the released bf16 checkpoint, or one whose quantization_config says how it is stored",
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
            lines.append(f"  {kind} ({len(items)}): {', '.join(map(_short, items[:5]))}{more}")
        raise CheckpointError("\n".join([*lines, *(f"  fix: {fix}" for fix in self.fixes)]))


# name -> (dtype, shape), as a file's header says
Header = dict[str, tuple[str, Shape]]
# name -> the dtypes that it may have, and its shape, None if of any length
Layout = dict[str, tuple[tuple[str, ...], Shape | None]]


@dataclass(frozen=True)
class Manifest:
    """The files of a checkpoint that holds what a model needs, and of each the tensors to load.

    Attributes:
        format: in which the matrices that are quantised are stored.
        unpacked: of these, the names of those that the model has in full: vision and router, which bitsandbytes
            quantises too where nobody tells it not to.
    """

    folder: Path
    files: dict[str, Header]
    format: str | None = None
    unpacked: frozenset[str] = frozenset()


def expected_shapes(config: VLConfig) -> Iterator[tuple[str, Shape]]:
    """Released name and shape of every tensor of a model of this config; lazy. Says nothing of quantization."""
    text = text_backbone.released_shapes(config.text)
    if config.vision is None:
        return text
    named = ((f"language_model.{name}", shape) for name, shape in text)
    return chain(named, vision_encoder.released_shapes(config.vision))


def read_manifest(folder: str | Path, shapes: Iterable[tuple[str, Shape]], quantization: str | None = None) -> Manifest:
    """Hold the headers of a folder's files to what a model needs: names, shapes and dtypes. Reads no weights.

    Tensors of older files that no model uses are passed over with a warning.

    Args:
        folder: holds `model.safetensors`, or an index and its shards.
        shapes: released name and shape of each tensor that must be in the files, and no others may be.
        quantization: the format in which the files hold the matrices that are quantised, each as several tensors.

    Raises:
        CheckpointError: lists what is missing, unexpected, mis-shaped, damaged, of an unsupported dtype, or
            inconsistent with the index.
    """
    problems = Problems(Path(folder))
    headers = _read_headers(problems.folder, problems)
    used = {file: {n: entry for n, entry in header.items() if not UNUSED.search(n)} for file, header in headers.items()}
    unpacked = _unpacked(quantization, chain.from_iterable(used.values()))
    _compare(shapes, quantization, unpacked, used, problems)
    problems.check()
    _warn_of_unused(problems.folder, [name for header in headers.values() for name in header if UNUSED.search(name)])
    return Manifest(problems.folder, used, quantization, unpacked)


def _read_headers(folder: Path, problems: Problems) -> dict[str, Header]:
    """The headers of the checkpoint's files, held to the index when there is one."""
    if _is_file(folder / SINGLE):
        return {SINGLE: _header(folder / SINGLE, problems)}
    if not _is_file(folder / INDEX):
        raise CheckpointError(_no_weights(folder))
    weight_map = _weight_map(folder / INDEX)
    listed: dict[str, set[str]] = defaultdict(set)
    for name, file in weight_map.items():
        listed[file].add(name)
    headers = {}
    for file in sorted(listed):
        if not _is_file(folder / file):
            problems.add("files that the index names and that are missing", "index", file)
            continue
        header = headers[file] = _header(folder / file, problems)
        if header:
            problems.add(f"tensors that the index expects in {file}", "index", *sorted(listed[file] - header.keys()))
            problems.add(
                f"tensors of {file} that the index does not list", "index", *sorted(header.keys() - listed[file])
            )
    return headers


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that the file system refuses, a folder without rights
        return False


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
        weight_map: Any = json.loads(path.read_text(encoding="utf-8-sig"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a safetensors index ({error!r}): download it again") from error
    names = weight_map.values() if isinstance(weight_map, dict) else [None]
    # 255 bytes are what file systems take.
    if not all(isinstance(file, str) and file == Path(file).name and len(file) < 256 for file in names):
        raise CheckpointError(f"{path}: weight_map must map tensor names to plain file names: download it again")
    return dict(weight_map)


def read_header(path: Path) -> Header:
    """The header of a file of weights. Raises SafetensorError or OSError if it is no such file, or cut short."""
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        return {name: (piece.get_dtype(), tuple(piece.get_shape())) for name, piece in slices.items()}


def _header(path: Path, problems: Problems) -> Header:
    try:
        return read_header(path)
    except (SafetensorError, OSError) as error:
        problems.add("unreadable files", "damaged", f"{path.name} ({error})")
        return {}


def _unpacked(quantization: str | None, names: Iterable[str]) -> frozenset[str]:
    """Of what the model has in full, the tensors with scales beside them. Not of FP8, which rounds activations too."""
    mark = SCALES.get(quantization or "")
    if mark is None:
        return frozenset()
    stems = (name.removesuffix(mark) for name in names if name.endswith(mark))
    return frozenset(stem for stem in stems if not is_quantised(stem))


def stored_layout(
    shapes: Iterable[tuple[str, Shape]], quantization: str | None, unpacked: Container[str] = ()
) -> Iterator[tuple[str, Layout]]:
    """Per released name, what files hold of it; lazy. ValueError if a matrix cannot be held in the format.

    Args:
        unpacked: as of `Manifest`.
    """
    for name, shape in shapes:
        if quantization is not None and (is_quantised(name) or (name in unpacked and len(shape) == 2)):
            yield name, {name + suffix: part for suffix, part in stored_parts(quantization, *shape).items()}
        else:
            yield name, {name: (DTYPES, shape)}


def _compare(
    shapes: Iterable[tuple[str, Shape]],
    quantization: str | None,
    unpacked: Container[str],
    headers: Mapping[str, Header],
    problems: Problems,
) -> None:
    found = {name: entry for header in headers.values() for name, entry in header.items()}
    most = len(found) + MANY
    layouts = chain.from_iterable(layout.items() for _, layout in stored_layout(shapes, quantization, unpacked))
    wanted = dict(islice(layouts, most + 1))
    missing = [name for name in wanted if name not in found]
    if len(wanted) > most:
        problems.add("missing tensors, counting no further", "missing", *missing)
    else:
        problems.add("missing tensors", "missing", *missing)
        problems.add("unexpected tensors", "missing", *(name for name in found if name not in wanted))
    for name, (dtype, shape) in found.items():
        dtypes, size = wanted.get(name, (DTYPES, shape))
        if size is not None and shape != size:
            problems.add("tensors of the wrong shape", "missing", f"{name} {list(shape)} instead of {list(size)}")
        if dtype not in dtypes:
            problems.add("tensors of an unsupported dtype", "quantised", f"{name} {dtype}")


def _warn_of_unused(folder: Path, names: list[str]) -> None:
    """One line, with a layer's number as a star: one constant may be in every layer."""
    if names:
        kinds = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)
        listed = ", ".join(_short(kind) if count == 1 else f"{_short(kind)} ({count})" for kind, count in kinds.items())
        # Attributed to the line that calls `vl.load`.
        warnings.warn(f"{folder}: passed over what the model does not use: {listed}", stacklevel=5)


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."
