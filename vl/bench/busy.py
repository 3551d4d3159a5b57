"""How much of the time a GPU has work, as its driver counts it."""

from __future__ import annotations

import contextlib
import subprocess
from types import TracebackType

import torch

_EVERY = 50  # milliseconds between two looks


class Busy:
    """Looks at a GPU while its block runs, in a process of its own; a context manager.

    Attributes:
        fraction: from 0 to 1, the mean of what `nvidia-smi` said: the part of the last tenths of a second in which
            some kernel ran. None if it is no GPU, there is no `nvidia-smi`, or the block was too short.
    """

    def __init__(self, device: torch.device) -> None:
        self.fraction: float | None = None
        self._device = device
        self._looking: subprocess.Popen[str] | None = None

    def __enter__(self) -> Busy:
        if self._device.type == "cuda":
            name = f"GPU-{torch.cuda.get_device_properties(self._device).uuid}"
            wanted = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"--id={name}", f"-lms={_EVERY}"]
            with contextlib.suppress(OSError):
                self._looking = subprocess.Popen(
                    ["nvidia-smi", *wanted], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._looking is None:
            return
        self._looking.terminate()
        said = self._looking.communicate()[0]
        seen = [int(line) for line in said.split() if line.isdigit()]
        if seen:
            self.fraction = sum(seen) / len(seen) / 100
