"""Ranks: processes that meet."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch.distributed as dist
from forkserver import Popen


def meet(count: int, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, timeout: float) -> None:
    """Commands of this Python with the variables by which `torchrun` has them meet, at a store that is here.

    Raises AssertionError as `run_together`.

    Args:
        folder: for what they write, `rank0.log` and so on.
        timeout: seconds.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    environments = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    logs = [folder / f"rank{rank}.log" for rank in range(count)]
    run_together([[sys.executable, *arguments]] * count, environments, logs, timeout)


def run_together(
    commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]], logs: Sequence[Path], timeout: float
) -> None:
    """One that fails, or all if they hang, end the others; then what they wrote is the error."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command, environment, path in zip(commands, environments, logs, strict=True):
            with path.open("w") as log:
                processes.append(Popen(command, env=environment, stdout=log, stderr=log))
        end = time.monotonic() + timeout
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes) or time.monotonic() > end:
                break
            time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert all(process.returncode == 0 for process in processes), "\n".join(path.read_text() for path in logs)
