"""How near loading a checkpoint comes to reading its files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from vl.checkpoint import load_weights
from vl.config import read_config
from vl.errors import ConfigError
from vl.hub import resolve_source
from vl.loading import Opened, open_folder, pick_device, pick_dtype
from vl.model import MiniMaxVL
from vl.threads import merged

_PIECE = 1 << 26  # bytes read at a time to memory that is used again


@dataclass(frozen=True)
class Loading:
    """Medians, in seconds.

    Attributes:
        size: bytes of the files.
        read: to read the files, with as many threads as loading has, and do nothing else. The memory is new, as the
            model's is, where that is the host's; for a model on a GPU it is used again and again.
        load: to read them into a model that is there already, with room for its weights.
    """

    size: int
    read: float
    load: float

    @property
    def share(self) -> float:
        """What loading reaches of the speed of reading."""
        return self.read / self.load


def bench_load(
    source: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    repeats: int = 5,
    cold: bool = False,
) -> Loading:
    """Read the files and load them, in turns.

    Args:
        source, device, dtype: as of `vl.load`.
        cold: ask the system to forget the files before each turn, which it does on Linux where nobody else has them.

    Raises:
        CheckpointError, ConfigError, DeviceError: as `vl.load`; ConfigError also if the system cannot forget files.
    """
    place = pick_device(device)
    folder = resolve_source(source)
    opened = open_folder(folder, read_config(folder))
    files = [folder / name for name in opened.manifest.files]
    reads, loads = [], []
    for _ in range(repeats):
        if cold:
            _forget(files)
        reads.append(_timed(partial(_read, files, again=place.type == "cuda")))
        model = MiniMaxVL(opened.config, opened.processor, device=place, dtype=pick_dtype(dtype, place))
        if cold:
            _forget(files)
        loads.append(_timed(partial(_load, model, opened)))
        del model
    return Loading(sum(file.stat().st_size for file in files), median(reads), median(loads))


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _load(model: MiniMaxVL, opened: Opened) -> None:
    places = model.stored_tensors() if opened.stored else model.released_tensors()
    load_weights(places, opened.manifest, pin=model.device.type == "cuda")
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _read(files: Sequence[Path], *, again: bool) -> None:
    """Each file to memory of its size, or `again` and again to the same piece."""

    def read(path: Path) -> Iterator[Tensor]:
        size = path.stat().st_size
        memory = torch.empty(min(size, _PIECE) if again else size, dtype=torch.uint8)
        values: Any = memory.numpy()
        room = memoryview(values)
        with FileIO(path) as file:
            done = 0
            while done < size:
                done += file.readinto(room if again else room[done:])
        yield memory

    kept = list(merged(read, files))  # until all are there, as a model's are
    del kept


def _forget(files: Sequence[Path]) -> None:
    if not hasattr(os, "posix_fadvise"):
        raise ConfigError("this system cannot be asked to forget files: leave --cold out")
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
