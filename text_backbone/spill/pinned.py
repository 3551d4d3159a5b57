"""Host memory that a GPU copies from by itself, in exactly the size that is asked for.

PyTorch gives out pinned memory in powers of two: 248 GiB for the 209 that the released model's experts take in NF4.
"""

from __future__ import annotations

import mmap
from typing import Any

import torch
from torch import Tensor

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every GPU


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor in pinned memory, which is given back with the last view of it.

    Raises:
        MemoryError: if the host has not so much.
        RuntimeError: if CUDA cannot pin it.
    """
    meta = torch.empty(shape, dtype=dtype, device="meta")
    if not meta.nbytes:
        return torch.empty(shape, dtype=dtype)
    try:
        pages = _Pages(-1, meta.nbytes)
    except OSError as error:
        raise MemoryError(f"the host has no memory for {meta.nbytes:,} bytes ({error})") from error
    room = torch.frombuffer(pages, dtype=dtype, count=meta.numel())
    pages.pin(room.data_ptr(), meta.nbytes)
    return room.view(shape)


class _Pages(mmap.mmap):
    """Whole pages that the kernel gives out. Shared ones, so that they stay where they are when the process forks."""

    _cudart: Any = None
    _address = 0

    def pin(self, address: int, size: int) -> None:
        cudart: Any = torch.cuda.cudart()
        code = cudart.cudaHostRegister(address, size, _PORTABLE)
        if code != cudart.cudaError.success:
            raise RuntimeError(f"CUDA cannot pin {size:,} bytes of host memory: {cudart.cudaGetErrorString(code)}")
        self._cudart, self._address = cudart, address

    def __del__(self) -> None:
        """Before the pages go, which is after the last tensor in them."""
        if self._cudart is not None:
            self._cudart.cudaHostUnregister(self._address)
