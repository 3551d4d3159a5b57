"""Tensors from files of weights, read into memory that is used again, or straight to where they are kept."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from text_backbone.spill.pinned import pinned
from vl.errors import CheckpointError
from vl.manifest import Header

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
}

AHEAD = 64 << 20  # bytes behind a tensor that the system is asked to read too


class Buffer:
    """Memory for one tensor after the other, as large as the largest so far; `pin`: a GPU copies from it by itself."""

    def __init__(self, pin: bool = False) -> None:
        self._pin = pin
        self._memory = torch.empty(0, dtype=torch.uint8)

    def room(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialised; what the last one held is lost."""
        size = math.prod(shape) * dtype.itemsize
        if size > len(self._memory):
            self._memory = torch.empty(0, dtype=torch.uint8)  # the old memory goes before the new one comes
            self._memory = self._new(size)
        return self._memory[:size].view(dtype).view(shape)

    def _new(self, size: int) -> Tensor:
        if self._pin:
            with suppress(RuntimeError):  # a system that does not let CUDA pin it: copies are slower, that is all
                return pinned((size,), torch.uint8)
        return torch.empty(size, dtype=torch.uint8)


def read_tensors(
    path: Path, header: Header, buffer: Buffer, place: Callable[[str], Tensor | None] = lambda name: None
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file, in the order in which they lie there. Each is good until the next is asked for.

    Args:
        header: of the file, which has been checked; the tensors to read.
        buffer: where they are read to.
        place: by name, contiguous memory of the host that takes a tensor instead, if it is of its dtype and shape.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    try:
        with FileIO(path) as file:
            for name, start in _starts(file, header):
                dtype, shape = DTYPES[header[name][0]], header[name][1]
                tensor = place(name)
                if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != shape:
                    tensor = buffer.room(shape, dtype)
                _fill(tensor, file, start)
                yield name, tensor
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}): download the file again") from error


def _starts(file: FileIO, header: Header) -> list[tuple[str, int]]:
    """Where each tensor begins, first things first."""
    length = int.from_bytes(file.read(8), "little")
    found = json.loads(file.read(length))
    starts = ((name, 8 + length + found[name]["data_offsets"][0]) for name in header)
    return sorted(starts, key=lambda each: each[1])


def _fill(tensor: Tensor, file: FileIO, start: int) -> None:
    values: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    room = memoryview(values)
    if hasattr(os, "posix_fadvise"):  # the disk goes on while this tensor is worked on
        os.posix_fadvise(file.fileno(), start + len(room), AHEAD, os.POSIX_FADV_WILLNEED)
    file.seek(start)
    while len(room):
        count = file.readinto(room)
        if not count:
            raise OSError("it ends too early")
        room = room[count:]
