"""A checksum of tensors that costs little beside reading them from a disk."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_ROW, _ROWS = 1024, 64  # words, and rows at a time, for which a core's cache has room


def checksum_of(tensors: Mapping[str, Tensor]) -> int:
    """Of the tensors' names, dtypes, shapes and bytes, by rising names; other threads go on meanwhile.

    Bytes are taken for rows of 1024 int64, and CRC-32 is of the sum of every row, in order, of the sums of the columns
    and of what fills no row. A change within one row shows in its sum, or else in columns; rows that changed places
    show in their order. All of it at CRC-32's own rate would take three times as long.
    """
    found = 0
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(), found)
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy()
        whole = len(data) // (8 * _ROW) * (8 * _ROW)
        words = data[:whole].view(np.int64).reshape(-1, _ROW)
        columns = np.zeros(_ROW, np.int64)
        for start in range(0, len(words), _ROWS):
            part = words[start : start + _ROWS]
            columns += part.sum(0)
            found = zlib.crc32(part.sum(1).data, found)
        found = zlib.crc32(data[whole:].data, zlib.crc32(columns.data, found))
    return found
