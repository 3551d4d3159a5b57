"""Ranks are processes of their own, which meet over gloo; they run all cases of a file at once."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
TIMEOUT = 250  # seconds

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def worker() -> ModuleType:
    """The ranks' own code, to do the same in one process."""
    return load("worker")


@pytest.fixture(scope="session")
def context_worker() -> ModuleType:
    return load("context_worker")


@pytest.fixture(scope="session")
def expert_worker() -> ModuleType:
    return load("expert_worker")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def run_ranks() -> Run:
    """What each of so many ranks has for every case. A rank that fails, or all if they hang, end the others."""

    def run(
        ranks: int, cases: Mapping[str, dict[str, Any]], folder: Path, device: str = "cpu", worker: str = "worker"
    ) -> list[dict[str, Any]]:
        torch.save(dict(cases), folder / "cases.pt")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, str(HERE / f"{worker}.py")]
        processes = []
        try:
            for rank in range(ranks):
                log = (folder / f"{rank}.log").open("w")
                processes.append(
                    subprocess.Popen(
                        [*command, str(rank), str(ranks), str(folder), device], env=environment, stderr=log
                    )
                )
                log.close()
            end = time.monotonic() + TIMEOUT
            while any(process.poll() is None for process in processes):
                failed = [rank for rank, process in enumerate(processes) if process.poll()]
                if failed or time.monotonic() > end:
                    break
                time.sleep(0.05)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
        logs = [(folder / f"{rank}.log").read_text() for rank in range(ranks)]
        assert all(process.returncode == 0 for process in processes), "\n".join(logs)
        return [torch.load(folder / f"{rank}.pt", map_location="cpu") for rank in range(ranks)]

    return run
